# SPDX-License-Identifier: Apache-2.0
"""Secrets: where they are kept, and the formats that they come in; GnuTLS."""
