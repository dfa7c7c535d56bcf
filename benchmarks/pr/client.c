// SPDX-License-Identifier: Apache-2.0
/*
 * Asks a persistent reservation helper as fast as it answers: client SOCKET FILE CONNECTIONS MILLISECONDS OUT
 *
 * One thread a connection; OUT is 1 for PERSISTENT RESERVE OUT with 24 bytes, 0 for PERSISTENT RESERVE IN.
 * Prints commands per second, and the median and 99th percentile of their time in microseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST 2000000

static const char *path;
static int file, out;
static double until;
static pthread_barrier_t barrier;
static float *times;
static size_t count;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void receive(int fd, void *data, size_t length)
{
    if (recv(fd, data, length, MSG_WAITALL) != (ssize_t)length)
        fail("recv");
}

static void ask(int fd)
{
    unsigned char cdb[16] = {out ? 0x5f : 0x5e, 0, 0, 0, 0, 0, 0, 0, 24}, reply[104], data[24] = {0};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec vector = {cdb, sizeof(cdb)};
    struct msghdr message = {
        .msg_iov = &vector,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof(control),
    };
    uint32_t length;

    control.header.cmsg_len = CMSG_LEN(sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(&control.header), &file, sizeof(int));
    if (sendmsg(fd, &message, 0) != sizeof(cdb))
        fail("sendmsg");
    if (out && send(fd, data, sizeof(data), 0) != sizeof(data))
        fail("send");
    receive(fd, reply, sizeof(reply));
    if (reply[3])
        exit(2);
    memcpy(&length, reply + 4, sizeof(length));
    length = __builtin_bswap32(length);
    if (length)
        receive(fd, data, length);
}

static void *run(void *unused)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    uint32_t word;
    double before, after;

    (void)unused;
    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)))
        usleep(1000);
    receive(fd, &word, sizeof(word));
    word = 0;
    if (send(fd, &word, sizeof(word), 0) != sizeof(word))
        fail("send");
    ask(fd);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    for (before = now(); before < until; before = after) {
        size_t at;

        ask(fd);
        after = now();
        at = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
        if (at < MOST)
            times[at] = (after - before) * 1e6;
    }
    return NULL;
}

static int compare(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;

    return a < b ? -1 : a > b;
}

int main(int argc, char **argv)
{
    int connections = argc == 6 ? atoi(argv[3]) : 0;
    pthread_t threads[1024];
    double seconds;

    if (connections < 1 || connections > 1024)
        return 1;
    path = argv[1];
    file = open(argv[2], O_RDWR);
    seconds = atof(argv[4]) / 1000;
    out = atoi(argv[5]);
    times = calloc(MOST, sizeof(float));
    pthread_barrier_init(&barrier, NULL, connections + 1);
    for (int i = 0; i < connections; i++)
        pthread_create(&threads[i], NULL, run, NULL);
    pthread_barrier_wait(&barrier);
    until = now() + seconds;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < connections; i++)
        pthread_join(threads[i], NULL);
    if (count > MOST)
        count = MOST;
    qsort(times, count, sizeof(float), compare);
    printf("%.0f %.1f %.1f\n", count / seconds, times[count / 2], times[count * 99 / 100]);
    return 0;
}
