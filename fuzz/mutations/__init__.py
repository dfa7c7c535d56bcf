# SPDX-License-Identifier: Apache-2.0
"""Mutations: wrong changes of our own code, each of which loses data. They test the tests.

`python -m fuzz.mutations` applies each change to a copy of the tree, runs the tests that should
notice it, and reports whether they did. The changes are in the modules of `fuzz.mutations.changes`,
by area. After a refactoring, `--check` reports which of them no longer apply. Rewrite those for the
new code.

If no test can distinguish a change from the right code, `equivalent` has the reason. Such a change
is listed and not run.
"""
