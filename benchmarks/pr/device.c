// SPDX-License-Identifier: Apache-2.0
/*
 * Preloaded into a helper: every file is a SCSI disk that answers SG_IO with GOOD and eight bytes, after
 * BENCH_MICROSECONDS.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

static long microseconds;
static int (*real_ioctl)(int, unsigned long, void *);
static int (*real_fstat)(int, struct stat *);

__attribute__((constructor)) static void start(void)
{
    const char *text = getenv("BENCH_MICROSECONDS");

    microseconds = text ? atol(text) : 0;
    real_ioctl = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    real_fstat = (int (*)(int, struct stat *))dlsym(RTLD_NEXT, "fstat");
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    sg_io_hdr_t *hdr;

    va_start(list, request);
    hdr = va_arg(list, void *);
    va_end(list);
    if (request != SG_IO)
        return real_ioctl(fd, request, hdr);
    if (microseconds) {
        struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
    hdr->status = 0;
    hdr->host_status = hdr->driver_status = 0;
    hdr->resid = 0;
    if (hdr->dxfer_direction == SG_DXFER_FROM_DEV) {
        memset(hdr->dxferp, 0, 8);
        hdr->resid = (int)hdr->dxfer_len - 8;
    }
    return 0;
}

/* QEMU's helper doesn't ask what a file is; ours does. */
int fstat(int fd, struct stat *status)
{
    int result = real_fstat(fd, status);

    if (!result && S_ISREG(status->st_mode)) {
        status->st_mode = (status->st_mode & ~S_IFMT) | S_IFBLK;
        status->st_rdev = makedev(8, 0);
    }
    return result;
}

int fstat64(int fd, struct stat64 *status)
{
    return fstat(fd, (struct stat *)status);
}
