# SPDX-License-Identifier: Apache-2.0
"""TLS: credentials, sessions, and the character devices that speak it."""
