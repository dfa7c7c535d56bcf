/* SPDX-License-Identifier: Apache-2.0
 *
 * Log-linear buckets: 32 to each power of two, so a value is known to about 3 %. Values below 64
 * have a bucket each.
 */
#include "loadgen.h"

#define SUB_BITS 5

uint32_t lg_bucket(uint64_t value)
{
    if (value < (2u << SUB_BITS))
        return (uint32_t)value;
    uint32_t shift = 63 - SUB_BITS - (uint32_t)__builtin_clzll(value);
    return (shift << SUB_BITS) + (uint32_t)(value >> shift);
}

uint64_t lg_bucket_floor(uint32_t bucket)
{
    if (bucket < (2u << SUB_BITS))
        return bucket;
    uint32_t shift = (bucket >> SUB_BITS) - 1;
    return (uint64_t)(bucket - (shift << SUB_BITS)) << shift;
}
