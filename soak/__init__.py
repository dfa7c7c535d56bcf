# SPDX-License-Identifier: Apache-2.0
"""Everything that takes hours: `make soak`.

Parts are command lines (`parts`). Most run for a given time, which is cut into slices, each with a
seed of its own. What is done is kept in `.cache/soak/state.json`. The next `make soak` goes on
where one was stopped: with the next slice, and with what failed. When all is done, the next one
begins a new run, with other seeds.

There is one line of result for each part, and a log in `.cache/soak`. The exit status is 1 if a
part failed. `scripts/exclusive` keeps benchmarks and other soaks of this tree from running
meanwhile.

    make soak                                    # an hour for each part that takes a time
    make soak ARGS='--seconds 600 --part model'  # less
    make soak ARGS=--list                        # the parts and their commands
"""
