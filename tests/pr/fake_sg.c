// SPDX-License-Identifier: Apache-2.0
/*
 * Preloaded into a helper: SG_IO on a regular file that begins with "SGFAKE" is answered by what the file
 * says, and fstat(2) says of it that it is a device. The request is written behind the answer.
 * The layout is that of tests/pr/fake.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <linux/major.h>
#include <scsi/sg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

struct answer {
    char magic[8];
    int32_t error;
    uint32_t sleep_ms;
    uint8_t status, major;
    uint16_t host_status, driver_status, sense_length;
    int32_t resid;
    uint32_t data_length;
    uint8_t sense[96];
    uint8_t data[8192];
};

struct asked {
    int32_t interface_id, direction;
    uint32_t cdb_length, sense_length, data_length, timeout, flags, iovecs;
    uint8_t cdb[16];
    uint8_t data[8192];
};

static int is_fake(int fd)
{
    char magic[8] = "";

    return pread(fd, magic, sizeof(magic), 0) == sizeof(magic) && !memcmp(magic, "SGFAKE\0", 8);
}

static unsigned fake_major(int fd)
{
    struct answer answer;

    return pread(fd, &answer, sizeof(answer), 0) == sizeof(answer) ? answer.major : 0;
}

/* By way of a mapping: a helper's filter of system calls may deny pwrite(2). */
static void note(int fd, const sg_io_hdr_t *hdr)
{
    size_t length = sizeof(struct answer) + sizeof(struct asked);
    char *file = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct asked *asked;

    if (file == MAP_FAILED)
        return; /* opened for reading only */
    asked = (struct asked *)(file + sizeof(struct answer));
    asked->interface_id = hdr->interface_id;
    asked->direction = hdr->dxfer_direction;
    asked->cdb_length = hdr->cmd_len;
    asked->sense_length = hdr->mx_sb_len;
    asked->data_length = hdr->dxfer_len;
    asked->timeout = hdr->timeout;
    asked->flags = hdr->flags;
    asked->iovecs = hdr->iovec_count;
    memcpy(asked->cdb, hdr->cmdp, hdr->cmd_len);
    if (hdr->dxfer_direction == SG_DXFER_TO_DEV && hdr->dxfer_len <= sizeof(asked->data))
        memcpy(asked->data, hdr->dxferp, hdr->dxfer_len);
    munmap(file, length);
}

static int fake(int fd, sg_io_hdr_t *hdr)
{
    struct answer answer;

    if (pread(fd, &answer, sizeof(answer), 0) != sizeof(answer)) {
        errno = EIO;
        return -1;
    }
    note(fd, hdr);
    for (uint32_t slept = 0; slept < answer.sleep_ms; slept += 20) {
        uint32_t left = answer.sleep_ms - slept;
        struct timespec time = {0, (left < 20 ? left : 20) * 1000000L};

        nanosleep(&time, NULL);
        if (pread(fd, &answer, sizeof(answer), 0) != sizeof(answer)) /* it may be released */
            break;
    }
    if (answer.error) {
        errno = answer.error;
        return -1;
    }
    hdr->status = answer.status;
    hdr->host_status = answer.host_status;
    hdr->driver_status = answer.driver_status;
    hdr->resid = answer.resid;
    hdr->sb_len_wr = answer.sense_length;
    memcpy(hdr->sbp, answer.sense, answer.sense_length);
    if (hdr->dxfer_direction == SG_DXFER_FROM_DEV)
        memcpy(hdr->dxferp, answer.data, answer.data_length);
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*real)(int, unsigned long, void *);
    va_list list;
    void *argument;

    va_start(list, request);
    argument = va_arg(list, void *);
    va_end(list);
    if (request == SG_IO && is_fake(fd))
        return fake(fd, argument);
    if (!real)
        real = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    return real(fd, request, argument);
}

static int pretend(int fd, int result, mode_t *mode, dev_t *device)
{
    int error = errno;

    if (!result && S_ISREG(*mode) && is_fake(fd)) {
        *device = makedev(fake_major(fd), 0);
        *mode = (*mode & ~S_IFMT) | (major(*device) == SCSI_GENERIC_MAJOR ? S_IFCHR : S_IFBLK);
    }
    errno = error;
    return result;
}

int fstat(int fd, struct stat *status)
{
    static int (*real)(int, struct stat *);

    if (!real)
        real = (int (*)(int, struct stat *))dlsym(RTLD_NEXT, "fstat");
    return pretend(fd, real(fd, status), &status->st_mode, &status->st_rdev);
}

int fstat64(int fd, struct stat64 *status)
{
    static int (*real)(int, struct stat64 *);

    if (!real)
        real = (int (*)(int, struct stat64 *))dlsym(RTLD_NEXT, "fstat64");
    return pretend(fd, real(fd, status), &status->st_mode, &status->st_rdev);
}
