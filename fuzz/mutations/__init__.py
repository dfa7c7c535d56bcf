# SPDX-License-Identifier: Apache-2.0
"""Wrong changes of our own code, each of which loses data, to test the tests.

`python -m fuzz.mutations` applies each change to a copy of the tree, runs the tests that should
notice it, and says whether they did. The changes are in the modules of `fuzz.mutations.changes`, by
area. After a refactoring `--check` tells which of them no longer apply: they are then to be made
anew, for the code as it is now.

A change that no run can tell from the right code has its reason in `equivalent`. It is listed and
not run.
"""
