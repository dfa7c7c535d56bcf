/* SPDX-License-Identifier: Apache-2.0
 *
 * What verification writes into a block, as 64-bit words: magic, seed of the run, block number,
 * generation, checksum of all the others, then pseudo-random words that follow from seed, block
 * and generation. So a block tells where it belongs and when it was written, and a mixture of two
 * generations fails the checksum.
 */
#include <string.h>

#include "loadgen.h"

#define MAGIC 0x314b4c42544f4856ull
#define ODD 0x9e3779b97f4a7c15ull

enum { WORD_MAGIC, WORD_SEED, WORD_BLOCK, WORD_GENERATION, WORD_CHECKSUM, WORD_FILL };

static uint64_t mix(uint64_t value)
{
    value = (value ^ (value >> 32)) * 0xd6e8feb86659fd93ull;
    return value ^ (value >> 32);
}

/* Four independent lanes, because one would wait for its multiplication every time. */
static uint64_t checksum(const uint64_t *word, uint32_t count)
{
    uint64_t lane[4] = {1, 2, 3, 4};

    for (uint32_t i = 0; i < count; i += 4) {
        for (uint32_t j = 0; j < 4; j++) {
            uint64_t value = i + j == WORD_CHECKSUM ? 0 : word[i + j];
            lane[j] = (lane[j] ^ value) * ODD;
            lane[j] ^= lane[j] >> 29;
        }
    }
    return mix(lane[0] + 3 * lane[1] + 5 * lane[2] + 7 * lane[3]);
}

void lg_pattern_fill(uint8_t *data, uint32_t size, uint64_t seed, uint64_t block,
                     uint32_t generation)
{
    uint64_t *word = (uint64_t *)data;
    uint32_t count = size / 8;

    if (generation & LG_GENERATION_ZEROES) {
        memset(data, 0, size);
        return;
    }
    word[WORD_MAGIC] = MAGIC;
    word[WORD_SEED] = seed;
    word[WORD_BLOCK] = block;
    word[WORD_GENERATION] = generation;
    uint64_t base = mix(seed ^ mix(block * ODD + generation));
    for (uint32_t i = WORD_FILL; i < count; i++) {
        base += ODD;
        word[i] = base ^ (base >> 31);
    }
    word[WORD_CHECKSUM] = checksum(word, count);
}

static bool is_zero(const uint64_t *word, uint32_t count)
{
    uint64_t any = 0;

    for (uint32_t i = 0; i < count; i++)
        any |= word[i];
    return any == 0;
}

int lg_pattern_check(const uint8_t *data, uint32_t size, uint64_t seed, uint64_t block,
                     uint32_t generation, uint64_t *found)
{
    const uint64_t *word = (const uint64_t *)data;
    uint32_t count = size / 8;

    *found = word[WORD_GENERATION];
    if (generation & LG_GENERATION_ZEROES)
        return is_zero(word, count) ? LG_OK : LG_WRONG_ZEROES;
    if (word[WORD_MAGIC] != MAGIC) {
        *found = word[WORD_MAGIC];
        return is_zero(word, count) ? LG_WRONG_ZEROES : LG_WRONG_MAGIC;
    }
    if (word[WORD_CHECKSUM] != checksum(word, count))
        return LG_WRONG_CHECKSUM;
    if (word[WORD_BLOCK] != block || word[WORD_SEED] != seed) {
        *found = word[WORD_BLOCK];
        return LG_WRONG_BLOCK;
    }
    return word[WORD_GENERATION] == generation ? LG_OK : LG_WRONG_GENERATION;
}
