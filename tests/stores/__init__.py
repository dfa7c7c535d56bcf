# SPDX-License-Identifier: Apache-2.0
"""Each store into shared memory: what a death before it leaves, and what a migration sees."""
