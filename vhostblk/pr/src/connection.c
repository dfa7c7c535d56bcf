/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/major.h>
#include <scsi/sg.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PERSISTENT_RESERVE_IN 0x5E
#define PERSISTENT_RESERVE_OUT 0x5F
#define DRIVER_TIMEOUT 0x06 /* in `driver_status`, of kernels before 5.14 */

_Static_assert(offsetof(struct vb_pr_reply, data) == VB_PR_HEAD_SIZE, "no gaps");

static bool is_out(const struct vb_pr_connection *connection)
{
    return connection->cdb[0] == PERSISTENT_RESERVE_OUT;
}

/* The parameter list length, or the allocation length. */
static uint32_t data_length(const struct vb_pr_connection *connection)
{
    return (uint32_t)connection->cdb[7] << 8 | connection->cdb[8];
}

static void store_be32(uint8_t *place, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        place[i] = value >> (24 - 8 * i);
}

static void take_descriptors(struct vb_pr_connection *connection, struct msghdr *message)
{
    connection->fd_count = 0;
    for (struct cmsghdr *each = CMSG_FIRSTHDR(message); each; each = CMSG_NXTHDR(message, each)) {
        size_t size = each->cmsg_len - CMSG_LEN(0);

        /* There is room for no more than this. */
        if (each->cmsg_level == SOL_SOCKET && each->cmsg_type == SCM_RIGHTS &&
            size <= sizeof(connection->fds)) {
            memcpy(connection->fds, CMSG_DATA(each), size);
            connection->fd_count = size / sizeof(int);
        }
    }
    connection->fds_dropped = !!(message->msg_flags & MSG_CTRUNC);
}

/* Read a CDB with its descriptor, or what comes instead. */
static void read_cdb(struct vb_pr_connection *connection)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(connection->fds))];
    } control;
    struct iovec iov = {connection->cdb, VB_PR_CDB_SIZE};
    struct msghdr message;
    ssize_t count;

    do {
        message = (struct msghdr){
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = &control,
            .msg_controllen = sizeof(control),
        };
        count = recvmsg(connection->socket, &message, MSG_CMSG_CLOEXEC);
    } while (count < 0 && errno == EINTR);
    connection->error = count < 0 ? errno : 0;
    connection->cdb_read = count < 0 ? 0 : count;
    connection->data_read = connection->fd_count = connection->fds_dropped = 0;
    if (count >= 0)
        take_descriptors(connection, &message);
}

/* Whether a CDB has come as it should. */
static bool is_cdb_plain(const struct vb_pr_connection *connection)
{
    return connection->cdb_read == VB_PR_CDB_SIZE && connection->fd_count == 1 &&
           !connection->fds_dropped &&
           (is_out(connection) || connection->cdb[0] == PERSISTENT_RESERVE_IN) &&
           data_length(connection) <= VB_PR_MAX_DATA;
}

/* Read a parameter list; false: it has not come at once, or not at all. */
static bool read_parameters(struct vb_pr_connection *connection)
{
    uint32_t wanted = is_out(connection) ? data_length(connection) : 0;
    ssize_t count;

    if (!wanted)
        return true;
    do
        count = recv(connection->socket, connection->reply.data, wanted, 0);
    while (count < 0 && errno == EINTR);
    connection->error = count < 0 ? errno : 0;
    connection->data_read = count < 0 ? 0 : count;
    return connection->data_read == wanted;
}

static bool is_scsi_disk(unsigned number)
{
    return number == SCSI_DISK0_MAJOR ||
           (number >= SCSI_DISK1_MAJOR && number <= SCSI_DISK7_MAJOR) ||
           (number >= SCSI_DISK8_MAJOR && number <= SCSI_DISK15_MAJOR);
}

/* Whether the descriptor is one that SG_IO alone can serve: not a multipath map, and open for writing where the
 * command writes. */
static bool is_device_plain(const struct vb_pr_connection *connection)
{
    int fd = connection->fds[0];
    struct stat status;

    if (is_out(connection)) {
        int flags = fcntl(fd, F_GETFL);

        if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
            return false;
    }
    if (fstat(fd, &status) < 0)
        return false;
    if (S_ISBLK(status.st_mode))
        return is_scsi_disk(major(status.st_rdev));
    return S_ISCHR(status.st_mode) && major(status.st_rdev) == SCSI_GENERIC_MAJOR;
}

/* Send the command to the device and make the reply; false: it has failed below SCSI. */
static bool execute(struct vb_pr_connection *connection)
{
    sg_io_hdr_t header = {
        .interface_id = 'S',
        .dxfer_direction = is_out(connection) ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV,
        .cmd_len = VB_PR_CDB_SIZE,
        .mx_sb_len = VB_PR_SENSE_SIZE,
        .dxfer_len = is_out(connection) ? data_length(connection) : VB_PR_MAX_DATA,
        .dxferp = connection->reply.data,
        .cmdp = connection->cdb,
        .sbp = connection->reply.sense,
        .timeout = connection->timeout,
    };
    int64_t length = 0;

    memset(connection->reply.sense, 0, VB_PR_SENSE_SIZE);
    /* A driver that transfers less than it says must not show an earlier command's data. */
    if (!is_out(connection))
        memset(connection->reply.data, 0, VB_PR_MAX_DATA);
    connection->error = ioctl(connection->fds[0], SG_IO, &header) < 0 ? errno : 0;
    connection->host_status = header.host_status;
    connection->driver_status = header.driver_status;
    if (connection->error || header.host_status || header.driver_status & DRIVER_TIMEOUT)
        return false;
    if (!is_out(connection) && !header.status) {
        length = (int64_t)VB_PR_MAX_DATA - header.resid;
        if (length > data_length(connection))
            length = data_length(connection);
        if (length < 0)
            length = 0;
    }
    store_be32(connection->reply.status, header.status);
    store_be32(connection->reply.length, length);
    connection->reply_size = VB_PR_HEAD_SIZE + length;
    return true;
}

/* Send the reply, without waiting for the client to read. */
static bool send_reply(struct vb_pr_connection *connection)
{
    ssize_t count = send(connection->socket, &connection->reply, connection->reply_size,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

    connection->sent = count < 0 ? 0 : count;
    return connection->sent == connection->reply_size;
}

int vb_pr_serve(struct vb_pr_connection *connection)
{
    bool done;

    do {
        read_cdb(connection);
        if (!is_cdb_plain(connection) || !read_parameters(connection) ||
            !is_device_plain(connection) || __atomic_load_n(&connection->ending, __ATOMIC_RELAXED))
            return VB_PR_READ;
        done = execute(connection);
        close(connection->fds[0]);
        if (!done)
            return VB_PR_FAILED;
    } while (send_reply(connection));
    return VB_PR_UNSENT;
}
