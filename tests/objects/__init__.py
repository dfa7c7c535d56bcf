# SPDX-License-Identifier: Apache-2.0
"""Objects: secrets and authorization."""
