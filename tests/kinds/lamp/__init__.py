# SPDX-License-Identifier: Apache-2.0
"""An object type: a lamp that can be switched."""
