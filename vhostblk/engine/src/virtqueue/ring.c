/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <stdlib.h>
#include <string.h>

#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY 1

/* Out of line, as it happens a few times in a queue's life. */
static __attribute__((noinline, cold)) bool chain_grow(struct vb_chain *chain)
{
    uint32_t capacity = chain->capacity ? chain->capacity * 2 : 64;
    struct iovec *grown = realloc(chain->iovs, capacity * sizeof(*grown));

    if (!grown)
        return false;
    chain->iovs = grown;
    chain->capacity = capacity;
    return true;
}

static inline bool chain_append(struct vb_chain *chain, uint64_t base, uint64_t length)
{
    if (__builtin_expect(chain->count == chain->capacity, 0) && !chain_grow(chain))
        return false;
    chain->iovs[chain->count++] = (struct iovec){(void *)(uintptr_t)base, length};
    return true;
}

/* Whether [addr, addr + length) is mapped throughout, if need be by several regions. */
static bool mapped_in_pieces(const struct vb_memory *memory, uint64_t addr, uint64_t length)
{
    for (unsigned piece = 0; piece < VB_MAX_PIECES; piece++) {
        uint64_t host, taken = vb_memory_piece(memory, addr, length, &host);

        addr += taken;
        length -= taken;
        if (!length)
            return true;
        /* An address of 0 now is the end of the address space, not its beginning. */
        if (!taken || !addr)
            return false;
    }
    return false;
}

/* Add a buffer that lies in no single region: a segment for each one that it crosses, or one that is
 * mapped nowhere. */
static __attribute__((noinline, cold)) bool append_pieces(struct vb_chain *chain,
                                                          const struct vb_memory *memory,
                                                          uint64_t addr, uint64_t length)
{
    if (!mapped_in_pieces(memory, addr, length)) {
        chain->fault = VB_FAULT_UNMAPPED;
        return chain_append(chain, 0, length);
    }
    while (length) {
        uint64_t host, taken = vb_memory_piece(memory, addr, length, &host);

        if (!chain_append(chain, host, taken))
            return false;
        addr += taken;
        length -= taken;
    }
    return true;
}

/* Add a buffer. An empty one is none at all, wherever it may point. Inline in both walks, of which it is
 * most. */
static inline __attribute__((always_inline)) bool
append_buffer(struct vb_chain *chain, struct vb_memory *memory, uint64_t addr, uint32_t length)
{
    uint64_t host;

    if (!length)
        return true;
    host = vb_memory_translate(memory, addr, length);
    if (__builtin_expect(!host, 0))
        return append_pieces(chain, memory, addr, length);
    return chain_append(chain, host, length);
}

/* Judge where an indirect table is said to be; *table is its host address. */
static uint8_t find_table(uint64_t addr, uint32_t length, struct vb_memory *memory,
                          uint64_t *table)
{
    if (!length || length % sizeof(struct vb_desc) || length > VB_MAX_CHAIN * sizeof(struct vb_desc))
        return VB_FAULT_INDIRECT_LENGTH;
    *table = vb_memory_translate(memory, addr, length);
    return *table ? VB_FAULT_NONE : VB_FAULT_INDIRECT_UNMAPPED;
}

/* Judge an INDIRECT descriptor; *table is its table's host address. */
static uint8_t enter_indirect(const struct vb_desc *desc, bool inside, struct vb_memory *memory,
                              uint64_t *table)
{
    if (inside || desc->flags & VB_DESC_F_NEXT)
        return VB_FAULT_INDIRECT_NESTED;
    return find_table(desc->addr, desc->len, memory, table);
}

bool vb_chain_walk(struct vb_chain *chain, const struct vb_ring *ring, struct vb_memory *memory,
                   uint16_t head)
{
    uint64_t table = ring->desc;
    uint32_t entries = ring->size, current = head, descriptors = 0;
    bool inside = false, writing = false;
    uint8_t walk_fault = VB_FAULT_NONE;

    chain->count = chain->readable = 0;
    chain->fault = VB_FAULT_NONE;
    for (;;) {
        struct vb_desc desc;

        memcpy(&desc, (const void *)(table + current * sizeof(desc)), sizeof(desc));
        /* The copy must not be read a second time behind our back. */
        __asm__ __volatile__("" : "+m"(desc));
        if (desc.flags & VB_DESC_F_INDIRECT) {
            walk_fault = enter_indirect(&desc, inside, memory, &table);
            if (walk_fault)
                break;
            inside = true;
            entries = desc.len / sizeof(desc);
            current = 0;
        } else {
            bool writes = desc.flags & VB_DESC_F_WRITE;

            if (writing && !writes) {
                /* Whatever else is wrong: what comes from here on is not looked at. */
                chain->fault = VB_FAULT_ORDER;
                return true;
            }
            writing = writes;
            descriptors++;
            if (!append_buffer(chain, memory, desc.addr, desc.len))
                return false;
            if (!writes)
                chain->readable = chain->count;
            if (!(desc.flags & VB_DESC_F_NEXT))
                break;
            current = desc.next;
        }
        if (descriptors >= VB_MAX_CHAIN) {
            walk_fault = VB_FAULT_TOO_LONG;
            break;
        }
        if (current >= entries) {
            walk_fault = VB_FAULT_NEXT_OUT_OF_RANGE;
            break;
        }
    }
    if (!chain->fault)
        chain->fault = walk_fault;
    return true;
}

/* Walk descriptors that follow each other: those of an indirect table, of whose flags only WRITE means
 * anything, or those copied from the ring. */
static inline __attribute__((always_inline)) bool
walk_row(struct vb_chain *chain, struct vb_memory *memory, const struct vb_packed_desc *descs,
         uint32_t count, bool table)
{
    for (uint32_t i = 0; i < count; i++) {
        struct vb_packed_desc desc;
        bool writes;

        memcpy(&desc, &descs[i], sizeof(desc));
        /* The copy must not be read a second time behind our back. */
        __asm__ __volatile__("" : "+m"(desc));
        writes = desc.flags & VB_DESC_F_WRITE;
        if (!table && (i == VB_MAX_CHAIN || desc.flags & VB_DESC_F_INDIRECT)) {
            if (!chain->fault)
                chain->fault = i == VB_MAX_CHAIN ? VB_FAULT_TOO_LONG : VB_FAULT_INDIRECT_NESTED;
            break;
        }
        if (chain->count > chain->readable && !writes) {
            chain->fault = VB_FAULT_ORDER;
            break;
        }
        if (!append_buffer(chain, memory, desc.addr, desc.len))
            return false;
        if (!writes)
            chain->readable = chain->count;
    }
    return true;
}

bool vb_packed_walk(struct vb_chain *chain, struct vb_memory *memory,
                    const struct vb_packed_desc *descs, uint32_t count)
{
    uint64_t table;

    chain->count = chain->readable = 0;
    chain->fault = VB_FAULT_NONE;
    if (count != 1 || !(descs->flags & VB_DESC_F_INDIRECT))
        return walk_row(chain, memory, descs, count, false);
    chain->fault = find_table(descs->addr, descs->len, memory, &table);
    if (chain->fault)
        return true;
    return walk_row(chain, memory, (const struct vb_packed_desc *)(uintptr_t)table,
                    descs->len / sizeof(*descs), true);
}

void vb_chain_free(struct vb_chain *chain)
{
    free(chain->iovs);
    memset(chain, 0, sizeof(*chain));
}

bool vb_ring_publish(struct vb_ring *ring, uint16_t count)
{
    __atomic_store_n((uint16_t *)(ring->used + 2), ring->next_used, __ATOMIC_RELEASE);
    /* The driver stores its event index, or flags, and then loads used.idx; we the other way round.
     * Without a full fence both may miss the other's store (2.7.7.2). */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ring->event_idx) {
        const uint16_t *used_event = (const uint16_t *)(ring->avail + 4 + 2 * ring->size);
        uint16_t wanted = __atomic_load_n(used_event, __ATOMIC_RELAXED);

        return (uint16_t)(ring->next_used - wanted - 1) < count;
    }
    return !(__atomic_load_n((const uint16_t *)ring->avail, __ATOMIC_RELAXED) &
             AVAIL_F_NO_INTERRUPT);
}

void vb_ring_enable_kicks(struct vb_ring *ring)
{
    if (ring->event_idx)
        __atomic_store_n((uint16_t *)(ring->used + 4 + sizeof(struct vb_used_elem) * ring->size),
                         ring->next_avail, __ATOMIC_RELAXED);
    else
        __atomic_store_n((uint16_t *)ring->used, 0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void vb_ring_disable_kicks(struct vb_ring *ring)
{
    /* With EVENT_IDX an event index that lies behind says so already. */
    if (!ring->event_idx)
        __atomic_store_n((uint16_t *)ring->used, USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}
