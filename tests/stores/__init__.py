# SPDX-License-Identifier: Apache-2.0
"""Tests of single stores into shared memory: a kill before each store, and a migration's view."""
