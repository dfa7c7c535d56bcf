/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes a connection of the reservation helper: the input decides what each system call returns. Each
 * descriptor must be closed once, or returned once; each reply must be what the device has answered.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "check.h"
#include "connection.h"
#include "input.h"

#define SOCKET 50
#define FIRST_FD 1000

static struct input input;
static struct vb_pr_connection *connection;
static int next_fd;
static unsigned open_fds;
static struct vb_pr_reply expected; /* of the command that was carried out last */
static uint32_t expected_size;      /* 0: none was, or its reply was sent */
static bool is_device, is_readable_only;

static bool is_open(int fd)
{
    return fd >= FIRST_FD && fd < next_fd && open_fds >> (fd - FIRST_FD) & 1;
}

static void shut(int fd)
{
    CHECK(is_open(fd));
    open_fds &= ~(1u << (fd - FIRST_FD));
}

/* Put descriptors, or what is none, into a message. */
static void add_control(struct msghdr *message, unsigned count)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    bool other = take_u8(&input) > 240;

    CHECK(message->msg_controllen >= CMSG_SPACE(2 * sizeof(int)));
    if (!count) {
        message->msg_controllen = 0;
        return;
    }
    *header = (struct cmsghdr){CMSG_LEN(count * sizeof(int)), SOL_SOCKET,
                               other ? SCM_CREDENTIALS : SCM_RIGHTS};
    for (unsigned i = 0; i < count; i++) {
        int fd = other ? -1 : next_fd++;

        memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(fd));
        if (!other)
            open_fds |= 1u << (fd - FIRST_FD);
    }
    message->msg_controllen = CMSG_SPACE(count * sizeof(int));
}

ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    static const int errors[] = {EAGAIN, EINTR, ECONNRESET, ENOMEM};
    uint8_t choice = take_u8(&input), *cdb = message->msg_iov->iov_base;
    unsigned count = choice % 8 < 6 ? 1 : choice % 8 == 6 ? 0 : 2;

    CHECK(fd == SOCKET && flags == MSG_CMSG_CLOEXEC && !open_fds && !expected_size);
    CHECK(message->msg_iovlen == 1 && message->msg_iov->iov_len == VB_PR_CDB_SIZE);
    message->msg_flags = 0;
    next_fd = FIRST_FD;
    if (!input.left) {
        message->msg_controllen = 0;
        return 0;
    }
    if (choice >= 240) {
        errno = errors[choice % 4];
        return -1;
    }
    add_control(message, count);
    if (choice >= 230)
        message->msg_flags = MSG_CTRUNC;
    if (choice >= 200)
        return take_bytes(&input, cdb, choice % 17);
    memset(cdb, 0, VB_PR_CDB_SIZE);
    cdb[0] = 0x5E + choice / 8 % 2;
    if (choice >= 190)
        cdb[0] = take_u8(&input);
    cdb[7] = take_u8(&input) % 36;
    cdb[8] = take_u8(&input);
    is_device = choice >= 16;
    is_readable_only = choice / 16 == 2;
    return VB_PR_CDB_SIZE;
}

ssize_t __wrap_recv(int fd, void *data, size_t length, int flags)
{
    static const int errors[] = {EAGAIN, EINTR, ECONNRESET, ENOMEM};
    uint8_t choice = take_u8(&input);

    CHECK(fd == SOCKET && !flags && data == connection->reply.data);
    CHECK(length && length <= VB_PR_MAX_DATA && connection->cdb[0] == 0x5F);
    if (choice >= 240) {
        errno = errors[choice % 4];
        return -1;
    }
    if (choice >= 200)
        length = length * (choice - 200) / 40;
    memset(data, choice, length);
    return length;
}

int __wrap_fcntl(int fd, int command, ...)
{
    CHECK(is_open(fd) && command == F_GETFL);
    return is_readable_only ? O_RDONLY : O_RDWR;
}

int __wrap_fstat(int fd, struct stat *status)
{
    static const mode_t modes[] = {S_IFBLK, S_IFCHR, S_IFREG, S_IFSOCK};
    static const unsigned majors[] = {8, 65, 71, 128, 135, 21, 1, 7, 11, 64, 72, 127, 136, 253};
    uint8_t choice = take_u8(&input);
    mode_t mode = modes[choice % 4];
    unsigned number = majors[choice / 4 % 14];

    CHECK(is_open(fd));
    if (!is_device && choice >= 250)
        return -1;
    if (is_device) {
        mode = S_IFBLK;
        number = majors[choice % 5];
    }
    is_device = (mode == S_IFBLK && choice / 4 % 14 < 5) || is_device ||
                (mode == S_IFCHR && number == 21);
    *status = (struct stat){.st_mode = mode | 0600, .st_rdev = makedev(number, choice)};
    return 0;
}

/* Answer a command, and make the reply that is due. */
static int answer(sg_io_hdr_t *header)
{
    static const int errors[] = {EIO, EINVAL, EBADE, EINTR};
    bool out = connection->cdb[0] == 0x5F;
    uint32_t wanted = connection->cdb[7] << 8 | connection->cdb[8], length = 0;
    uint8_t choice = take_u8(&input), written = take_u8(&input);

    memset(&expected, 0, sizeof(expected));
    if (choice >= 250) {
        errno = errors[choice % 4];
        return -1;
    }
    memset(header->sbp, choice, choice % (VB_PR_SENSE_SIZE + 1));
    memset(expected.sense, choice, choice % (VB_PR_SENSE_SIZE + 1));
    if (!out)
        memset(header->dxferp, written, written * 32);
    header->status = choice >= 128 ? choice & 62 : 0;
    header->host_status = choice >= 240 ? choice : 0;
    header->driver_status = choice >= 230 ? choice : 0;
    header->resid = choice < 100 ? VB_PR_MAX_DATA - written * 32 : (int)take_u64(&input);
    if (header->host_status || header->driver_status & 6)
        return 0;
    if (!out && !header->status) {
        int64_t there = (int64_t)VB_PR_MAX_DATA - header->resid;

        length = there < 0 ? 0 : there < wanted ? there : wanted;
        memset(expected.data, written, written * 32);
    }
    expected.status[3] = header->status;
    expected.length[2] = length >> 8;
    expected.length[3] = length;
    expected_size = VB_PR_HEAD_SIZE + length;
    return 0;
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    uint32_t wanted = connection->cdb[7] << 8 | connection->cdb[8];
    bool out = connection->cdb[0] == 0x5F;
    sg_io_hdr_t *header;
    va_list list;

    va_start(list, request);
    header = va_arg(list, sg_io_hdr_t *);
    va_end(list);
    CHECK(request == SG_IO && is_open(fd) && is_device && !(out && is_readable_only));
    CHECK(connection->cdb[0] == 0x5E + out && !connection->ending);
    CHECK(header->interface_id == 'S' && header->timeout == 1234 && !header->iovec_count);
    CHECK(header->dxfer_direction == (out ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV));
    CHECK(header->dxfer_len == (out ? wanted : VB_PR_MAX_DATA) && wanted <= VB_PR_MAX_DATA);
    CHECK(header->dxferp == connection->reply.data && header->cmdp == connection->cdb);
    CHECK(header->cmd_len == VB_PR_CDB_SIZE && header->mx_sb_len == VB_PR_SENSE_SIZE);
    CHECK(!out || connection->data_read == wanted);
    return answer(header);
}

int __wrap_close(int fd)
{
    shut(fd);
    return 0;
}

ssize_t __wrap_send(int fd, const void *data, size_t length, int flags)
{
    uint8_t choice = take_u8(&input);

    CHECK(fd == SOCKET && flags == (MSG_DONTWAIT | MSG_NOSIGNAL) && !open_fds);
    CHECK(length == expected_size && !memcmp(data, &expected, length));
    expected_size = 0;
    if (choice >= 250) {
        errno = choice % 2 ? EAGAIN : EPIPE;
        return -1;
    }
    return choice >= 240 ? length * (choice - 240) / 10 : length;
}

/* Do what Python does with what has been read. */
static bool take_what_was_read(void)
{
    CHECK(!expected_size && connection->cdb_read <= VB_PR_CDB_SIZE);
    CHECK(connection->data_read <= VB_PR_MAX_DATA && connection->fd_count <= VB_PR_MAX_FDS);
    for (uint32_t i = 0; i < connection->fd_count; i++)
        shut(connection->fds[i]);
    if (take_u8(&input) > 250)
        connection->ending = 1;
    return connection->cdb_read;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool more = true;

    input = (struct input){data, size};
    connection = calloc(1, sizeof(*connection));
    connection->socket = SOCKET;
    connection->timeout = 1234;
    open_fds = expected_size = 0;
    while (more) {
        int event = vb_pr_serve(connection);

        if (event == VB_PR_READ)
            more = take_what_was_read();
        else if (event == VB_PR_FAILED)
            CHECK(connection->error || connection->host_status || connection->driver_status & 6);
        else
            CHECK(event == VB_PR_UNSENT && connection->sent < connection->reply_size);
        CHECK(!open_fds && !expected_size);
    }
    free(connection);
    return 0;
}
