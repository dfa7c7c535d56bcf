# SPDX-License-Identifier: Apache-2.0
"""All tests that take hours: `make soak`.

A soak has parts, which are command lines (`parts`). Most run for a given time, which is cut into
slices; each slice has its own seed. `.cache/soak/state.json` records the slices that are done. If
`make soak` was stopped, the next one continues with the next slice, and repeats slices that failed.
When all are done, the next one begins a new run, with other seeds.

Each part prints one line with its result, and has a log in `.cache/soak`. The exit status is 1 if a
part failed. `scripts/exclusive` prevents benchmarks and other soaks of this tree from running
meanwhile.

    make soak                                    # an hour for each timed part
    make soak ARGS='--seconds 600 --part model'  # less
    make soak ARGS=--list                        # the parts and their commands
"""
