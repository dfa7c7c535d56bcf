/* SPDX-License-Identifier: Apache-2.0 */
/* The handler runs in whatever thread touched the memory, anywhere in its code, so it takes no lock:
 * it walks a list of blocks that only grows. A range is there while its `start` is not 0, which is
 * stored last and cleared first.
 *
 * Only the page that was touched is replaced. The others keep what the peer wrote, so that requests
 * in progress don't write zeroes in place of their data; the queues find out at their next sweep, and
 * Python ends the session. mmap() is a plain system call on Linux, and leaves errno to be restored.
 */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define GUARDS_A_BLOCK 128

struct vb_guard {
    uint64_t start; /* 0: free */
    uint64_t end;
    uint64_t page;
    int event_fd;
    uint32_t lost;
};

struct block {
    struct vb_guard guards[GUARDS_A_BLOCK];
    struct block *next;
};

uint32_t vb_guard_losses;

static struct block first_block;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of adding and removing */
static struct sigaction former;
static bool installed;

static struct vb_guard *guard_of(uint64_t address)
{
    for (struct block *block = &first_block; block;
         block = __atomic_load_n(&block->next, __ATOMIC_ACQUIRE))
        for (unsigned i = 0; i < GUARDS_A_BLOCK; i++) {
            struct vb_guard *guard = &block->guards[i];
            uint64_t start = __atomic_load_n(&guard->start, __ATOMIC_ACQUIRE);

            if (start && address >= start && address < guard->end)
                return guard;
        }
    return NULL;
}

static bool replace_page(struct vb_guard *guard, uint64_t address)
{
    void *page = (void *)(uintptr_t)(address & ~(guard->page - 1));
    uint64_t one = 1;

    if (mmap(page, guard->page, PROT_READ | PROT_WRITE,
             MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
        return false;
    if (!__atomic_exchange_n(&guard->lost, 1, __ATOMIC_ACQ_REL)) {
        ssize_t ignored = write(guard->event_fd, &one, sizeof(one));

        (void)ignored;
        __atomic_fetch_add(&vb_guard_losses, 1, __ATOMIC_RELEASE);
    }
    return true;
}

static void call_former(int number, siginfo_t *info, void *context)
{
    if (former.sa_flags & SA_SIGINFO) {
        former.sa_sigaction(number, info, context);
    } else if (former.sa_handler == SIG_DFL || former.sa_handler == SIG_IGN) {
        /* The same access again, or the same signal, ends the process. */
        signal(number, SIG_DFL);
        if (info->si_code <= 0)
            raise(number);
    } else {
        former.sa_handler(number);
    }
}

static void handle(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
    struct vb_guard *guard = info->si_code > 0 ? guard_of(address) : NULL;

    if (!guard || !replace_page(guard, address))
        call_former(number, info, context);
    errno = saved;
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigemptyset(&action.sa_mask);
    if (!installed && !sigaction(SIGBUS, &action, &former))
        installed = true;
}

static struct vb_guard *free_guard(void)
{
    struct block *block = &first_block;

    for (;;) {
        for (unsigned i = 0; i < GUARDS_A_BLOCK; i++)
            if (!block->guards[i].start)
                return &block->guards[i];
        if (!block->next) {
            struct block *more = calloc(1, sizeof(*more));

            if (!more)
                return NULL;
            __atomic_store_n(&block->next, more, __ATOMIC_RELEASE);
        }
        block = block->next;
    }
}

struct vb_guard *vb_guard_add(uint64_t start, uint64_t length, uint64_t page, int event_fd)
{
    struct vb_guard *guard;

    pthread_mutex_lock(&lock);
    install();
    guard = free_guard();
    if (guard) {
        guard->end = start + length;
        guard->page = page;
        guard->event_fd = event_fd;
        guard->lost = 0;
        __atomic_store_n(&guard->start, start, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return guard;
}

void vb_guard_remove(struct vb_guard *guard)
{
    pthread_mutex_lock(&lock);
    __atomic_store_n(&guard->start, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&lock);
}

int vb_guard_lost(const struct vb_guard *guard)
{
    return (int)__atomic_load_n(&guard->lost, __ATOMIC_ACQUIRE);
}

bool vb_guard_address_lost(uint64_t address)
{
    struct vb_guard *guard = guard_of(address);

    return guard && vb_guard_lost(guard);
}
