# SPDX-License-Identifier: Apache-2.0
"""The two lists of what hostile guests and front-ends do, case by case; see `test_index`."""
