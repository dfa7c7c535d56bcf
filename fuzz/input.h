/* SPDX-License-Identifier: Apache-2.0 */
/* Reading decisions from a fuzzer's input. At its end all numbers are 0. */
#ifndef VHOSTBLK_FUZZ_INPUT_H
#define VHOSTBLK_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct input {
    const uint8_t *next;
    size_t left;
};

static inline size_t take_bytes(struct input *input, void *into, size_t count)
{
    size_t taken = count < input->left ? count : input->left;

    memcpy(into, input->next, taken);
    input->next += taken;
    input->left -= taken;
    return taken;
}

static inline uint8_t take_u8(struct input *input)
{
    uint8_t value = 0;

    take_bytes(input, &value, sizeof(value));
    return value;
}

static inline uint16_t take_u16(struct input *input)
{
    uint16_t value = 0;

    take_bytes(input, &value, sizeof(value));
    return value;
}

static inline uint64_t take_u64(struct input *input)
{
    uint64_t value = 0;

    take_bytes(input, &value, sizeof(value));
    return value;
}

#endif
