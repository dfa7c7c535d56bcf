/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes walking, parsing, discard payloads and extent maps, each by itself: whatever a guest wrote,
 * what comes out lies in its memory and on the device.
 */
#include "core/extent.h"
#include "guest.h"
#include "virtqueue/packed.h"
#include "virtqueue/request.h"

static void check_chain(const struct vb_chain *chain, const struct guest *guest)
{
    CHECK(chain->readable <= chain->count);
    CHECK(chain->count <= VB_MAX_CHAIN * VB_MAX_PIECES);
    for (uint32_t i = 0; i < chain->count; i++) {
        const struct iovec *iov = &chain->iovs[i];

        CHECK(iov->iov_len);
        if (iov->iov_base)
            CHECK(owns(guest, (uint64_t)(uintptr_t)iov->iov_base, iov->iov_len));
        else
            CHECK(chain->fault == VB_FAULT_UNMAPPED || chain->fault == VB_FAULT_ORDER);
    }
}

static void check_request(const struct vb_request *request, const struct vb_chain *chain,
                          const struct guest *guest, uint64_t size, uint32_t block)
{
    uint64_t length = 0;

    CHECK(request->status == VB_STATUS_PENDING || request->status == VB_S_IOERR);
    CHECK(request->status != VB_STATUS_PENDING || (request->status_addr && !chain->fault));
    if (request->status_addr) {
        CHECK(owns(guest, request->status_addr, 1));
        *(uint8_t *)request->status_addr = request->status;
    }
    CHECK((uint64_t)request->iov_first + request->iov_count <= chain->count);
    for (uint32_t i = 0; i < request->iov_count; i++) {
        const struct iovec *iov = &chain->iovs[request->iov_first + i];

        CHECK(iov->iov_len && owns(guest, (uint64_t)(uintptr_t)iov->iov_base, iov->iov_len));
        length += iov->iov_len;
    }
    CHECK(length == request->length);
    if (request->status == VB_STATUS_PENDING && request->type <= VB_T_OUT) {
        CHECK(request->sector <= size / 512 && length <= size - request->sector * 512);
        CHECK(!(length % block) && !(request->sector * 512 % block));
    }
}

static void check_discard(const struct vb_discard_segment *segments, uint64_t length, uint32_t type,
                          uint64_t size, uint32_t block)
{
    if (vb_discard_validate(segments, length, type, size, block) != VB_STATUS_PENDING)
        return;
    for (uint64_t i = 0; i < length / sizeof(*segments); i++) {
        uint64_t offset = segments[i].sector * 512, bytes = segments[i].sectors * 512ull;

        CHECK(offset / 512 == segments[i].sector && offset <= size && bytes <= size - offset);
        CHECK(!(offset % block) && !(bytes % block));
    }
}

static void check_extents(struct input *input)
{
    uint64_t entries[16] = {0};
    struct vb_extent_map map = {
        .kind = take_u8(input) % 5,
        .flags = take_u8(input),
        .size = take_u16(input),
        .offset = take_u16(input),
        .cluster_bits = 12 + take_u8(input) % 4,
        .table = entries,
    };
    uint64_t *table, count, file_offset = 0, offset, length;
    enum vb_extent_verdict verdict;
    enum vb_extent_access access = take_u8(input) % 3;
    bool write = access != VB_ACCESS_READ;

    count = (map.size + (1ull << map.cluster_bits) - 1) >> map.cluster_bits;
    table = malloc(count * sizeof(*table) + 1);
    map.table = table;
    for (uint64_t i = 0; i < count; i++)
        table[i] = (uint64_t)take_u8(input) << map.cluster_bits | take_u8(input) % 32;
    offset = take_u8(input) & 1 ? take_u64(input) : take_u16(input);
    length = take_u8(input) & 1 ? take_u64(input) : take_u16(input);
    verdict = vb_extent_lookup(&map, offset, length, access, &file_offset);
    if (verdict != VB_GO_UP) {
        CHECK(offset <= map.size && length <= map.size - offset);
        CHECK(!write || map.flags & VB_EXTENT_WRITE);
        CHECK(!write || verdict != VB_GO_ZERO);
        if (map.kind == VB_EXTENT_TABLE && access == VB_ACCESS_WRITE_THROUGH)
            for (uint64_t i = offset >> map.cluster_bits;
                 i <= (offset + length - 1) >> map.cluster_bits; i++)
                CHECK(!(table[i] & VB_ENTRY_VOLATILE));
    }
    free(table);
}

/* Take the same bytes as a packed ring, of any size, and what comes out of it. */
static void check_packed(struct input *input, const struct vb_ring *split, struct guest *guest,
                         struct vb_memory *memory, uint64_t device_size, uint32_t block)
{
    struct vb_ring ring = *split;
    struct vb_packed_desc *descs;
    struct vb_chain chain = {0};
    uint8_t shape = take_u8(input);

    ring.size -= shape % 4 < ring.size ? shape % 4 : 0;
    ring.next_avail = shape / 4 % ring.size;
    ring.avail_wrap = shape >> 7;
    descs = calloc(ring.size, sizeof(*descs));
    while (vb_packed_available(&ring)) {
        struct vb_request request;
        uint32_t count = vb_packed_copy(&ring, descs);

        CHECK(count <= ring.size - ring.taken);
        if (!count)
            break;
        CHECK(vb_packed_walk(&chain, memory, descs, count));
        check_chain(&chain, guest);
        vb_request_parse(&request, &chain, descs[count - 1].id, device_size, block);
        check_request(&request, &chain, guest, device_size, block);
        vb_packed_advance(&ring, count);
        CHECK(ring.next_avail < ring.size && ring.taken <= ring.size);
    }
    free(descs);
    vb_chain_free(&chain);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct guest guest;
    struct vb_memory memory;
    struct vb_chain chain = {0};
    struct vb_ring ring = {0};
    uint8_t shape = take_u8(&input);
    uint32_t block = 512u << shape % 4;
    uint64_t device_size = take_u8(&input) & 1 ? take_u64(&input) / 512 * 512
                                               : take_u8(&input) * 512ull;
    size_t table_bytes;

    if (shape & 64)
        check_extents(&input);
    make_guest(&guest, &input);
    memory = (struct vb_memory){.regions = guest.regions, .count = guest.count};
    ring.size = 1u << (shape >> 2) % 8;
    table_bytes = ring.size * sizeof(struct vb_desc);
    ring.desc = (uint64_t)(uintptr_t)calloc(1, table_bytes);
    if (shape & 128 && guest.regions[0].size >= table_bytes) {
        /* The table lies where buffers lie, too. */
        free((void *)ring.desc);
        ring.desc = guest.regions[0].host_addr;
    } else {
        take_bytes(&input, (void *)ring.desc, table_bytes);
    }
    for (uint32_t head = 0; head < ring.size; head++) {
        struct vb_request request;

        CHECK(vb_chain_walk(&chain, &ring, &memory, head));
        check_chain(&chain, &guest);
        vb_request_parse(&request, &chain, head, device_size, block);
        check_request(&request, &chain, &guest, device_size, block);
    }
    check_packed(&input, &ring, &guest, &memory, device_size, block);
    for (uint64_t length = 0; length <= guest.regions[0].size; length += 8)
        check_discard((const void *)guest.regions[0].host_addr, length,
                      shape & 1 ? VB_T_DISCARD : VB_T_WRITE_ZEROES, device_size, block);
    if (ring.desc != guest.regions[0].host_addr)
        free((void *)ring.desc);
    vb_chain_free(&chain);
    free_guest(&guest);
    return 0;
}
