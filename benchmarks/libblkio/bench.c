/* SPDX-License-Identifier: Apache-2.0 */
/* Load on a vhost-user-blk device through libblkio, one polled queue.
 *
 *     bench SOCKET DEPTH BLOCK-SIZE SPAN write|read random|sequential WARM-UP-SECONDS SECONDS SEED
 *
 * Says "begin" after the warm-up, and at the end one line of JSON: nanoseconds, requests, and how
 * many latencies fell into each bucket (those of loadgen/src/histogram.c).
 */
#include <blkio.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUCKETS 1920
#define SUB_BUCKETS 32
#define MAX_DEPTH 1024

struct slot {
    char *buffer;
    uint64_t begun;
};

struct bench {
    struct blkio *blkio;
    struct blkioq *queue;
    struct slot slots[MAX_DEPTH];
    int depth;
    uint64_t block_size, blocks, next, random;
    bool write, sequential;
    uint64_t requests, histogram[BUCKETS];
};

static void check(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, blkio_get_error_msg());
        exit(1);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static unsigned bucket_of(uint64_t value)
{
    unsigned shift;

    if (value < 2 * SUB_BUCKETS)
        return (unsigned)value;
    shift = 63 - (unsigned)__builtin_clzll(value) - 5;
    return shift * SUB_BUCKETS + (unsigned)(value >> shift);
}

static uint64_t next_block(struct bench *bench)
{
    if (bench->sequential)
        return bench->next++ % bench->blocks;
    bench->random ^= bench->random << 13;
    bench->random ^= bench->random >> 7;
    bench->random ^= bench->random << 17;
    return (uint64_t)(((unsigned __int128)bench->random * bench->blocks) >> 64);
}

static void submit(struct bench *bench, struct slot *slot, uint64_t now)
{
    uint64_t offset = next_block(bench) * bench->block_size;

    slot->begun = now;
    if (bench->write)
        blkioq_write(bench->queue, offset, slot->buffer, bench->block_size, slot, 0);
    else
        blkioq_read(bench->queue, offset, slot->buffer, bench->block_size, slot, 0);
}

/* Keep `depth` requests in flight for a time, then wait for the last ones; the time it took. */
static uint64_t run(struct bench *bench, double seconds)
{
    struct blkio_completion done[MAX_DEPTH];
    uint64_t begin = now_ns(), now = begin, end = begin + (uint64_t)(seconds * 1e9);
    int in_flight = bench->depth;

    bench->requests = 0;
    memset(bench->histogram, 0, sizeof(bench->histogram));
    for (int i = 0; i < bench->depth; i++)
        submit(bench, &bench->slots[i], now);
    while (in_flight) {
        int count = blkioq_do_io(bench->queue, done, 1, bench->depth, NULL);

        check(count, "blkioq_do_io");
        now = now_ns();
        for (int i = 0; i < count; i++) {
            struct slot *slot = done[i].user_data;

            if (done[i].ret) {
                fprintf(stderr, "request: %s\n", strerror(-done[i].ret));
                exit(1);
            }
            bench->histogram[bucket_of(now - slot->begun)]++;
            bench->requests++;
            in_flight--;
            if (now < end) {
                submit(bench, slot, now);
                in_flight++;
            }
        }
    }
    return now - begin;
}

static void open_device(struct bench *bench, const char *path)
{
    struct blkio_mem_region region;
    int size = 1;

    check(blkio_create("virtio-blk-vhost-user", &bench->blkio), "blkio_create");
    check(blkio_set_str(bench->blkio, "path", path), path);
    check(blkio_connect(bench->blkio), path);
    while (size < bench->depth || size < 128)
        size *= 2;
    check(blkio_set_int(bench->blkio, "queue-size", size), "queue-size");
    check(blkio_set_int(bench->blkio, "num-queues", 0), "num-queues");
    check(blkio_set_int(bench->blkio, "num-poll-queues", 1), "num-poll-queues");
    check(blkio_start(bench->blkio), path);
    check(blkio_alloc_mem_region(bench->blkio, &region, bench->depth * bench->block_size),
          "blkio_alloc_mem_region");
    memset(region.addr, 0x5a, region.len);
    check(blkio_map_mem_region(bench->blkio, &region), "blkio_map_mem_region");
    for (int i = 0; i < bench->depth; i++)
        bench->slots[i].buffer = (char *)region.addr + i * bench->block_size;
    bench->queue = blkio_get_poll_queue(bench->blkio, 0);
}

int main(int argc, char **argv)
{
    static struct bench bench;
    uint64_t elapsed;
    const char *comma = "";

    if (argc != 10) {
        fprintf(stderr, "usage: see the source\n");
        return 2;
    }
    bench.depth = atoi(argv[2]);
    bench.block_size = strtoull(argv[3], NULL, 10);
    if (bench.depth < 1 || bench.depth > MAX_DEPTH || !bench.block_size)
        return 2;
    bench.blocks = strtoull(argv[4], NULL, 10) / bench.block_size;
    bench.write = !strcmp(argv[5], "write");
    bench.sequential = !strcmp(argv[6], "sequential");
    bench.random = strtoull(argv[9], NULL, 10) * 0x9e3779b97f4a7c15 | 1;
    open_device(&bench, argv[1]);
    run(&bench, atof(argv[7]));
    printf("begin\n");
    fflush(stdout);
    elapsed = run(&bench, atof(argv[8]));
    printf("{\"ns\": %" PRIu64 ", \"requests\": %" PRIu64 ", \"histogram\": {", elapsed,
           bench.requests);
    for (int i = 0; i < BUCKETS; i++)
        if (bench.histogram[i]) {
            printf("%s\"%d\": %" PRIu64, comma, i, bench.histogram[i]);
            comma = ", ";
        }
    printf("}}\n");
    blkio_destroy(&bench.blkio);
    return 0;
}
