# SPDX-License-Identifier: Apache-2.0
"""Jobs: long operations in the background, controlled by their ids."""
