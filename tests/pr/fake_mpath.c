// SPDX-License-Identifier: Apache-2.0
/*
 * Stands in for libmpathpersist: notes what it is asked in a file, and answers from another one. The
 * structures are those of <mpath_persist.h> (multipath-tools 0.9 to 0.11).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

unsigned int mpath_mx_alloc_len;

struct prin_readdescr {
    uint32_t prgeneration, additional_length;
    uint8_t key_list[8192];
};

struct prin_capdescr {
    uint16_t length;
    uint8_t flags[2];
    uint16_t pr_type_mask, reserved;
};

struct transportid {
    uint8_t format_code, protocol_id, name[256];
};

struct prout_param_descriptor {
    uint8_t key[8], sa_key[8];
    uint32_t obsolete;
    uint8_t sa_flags, reserved;
    uint16_t obsolete1;
    uint8_t private_buffer[8192];
    uint32_t num_transportid;
    struct transportid *trnptid_list[];
};

static int answer(void)
{
    const char *text = getenv("FAKE_MPATH_RESULT");

    return text ? atoi(text) : 0;
}

static FILE *note(void)
{
    return fopen(getenv("FAKE_MPATH_LOG"), "a");
}

static void hex(FILE *file, const void *data, size_t length)
{
    for (const uint8_t *byte = data; length--; byte++)
        fprintf(file, "%02x", *byte);
    fputc('\n', file);
}

int libmpathpersist_init(void)
{
    return getenv("FAKE_MPATH_BROKEN") ? 1 : 0;
}

int libmpathpersist_exit(void)
{
    return 0;
}

int mpath_persistent_reserve_in(int fd, int action, void *response, int noisy, int verbose)
{
    struct prin_readdescr *keys = response;
    struct prin_capdescr *capabilities = response;
    FILE *file = note();

    (void)fd;
    fprintf(file, "in %d noisy %d verbose %d max %u\n", action, noisy, verbose, mpath_mx_alloc_len);
    fclose(file);
    if (action == 2) {
        capabilities->length = 8;
        capabilities->flags[0] = 0x11;
        capabilities->flags[1] = 0x80;
        capabilities->pr_type_mask = 0xea01;
    } else {
        const char *length = getenv("FAKE_MPATH_LENGTH");

        keys->prgeneration = 0x01020304;
        keys->additional_length = length ? strtoul(length, NULL, 0) : 16;
        memcpy(keys->key_list, "keyAkeyAkeyBkeyB", 16);
    }
    return answer();
}

int mpath_persistent_reserve_out(int fd, int action, int scope, unsigned int type,
                                 struct prout_param_descriptor *given, int noisy, int verbose)
{
    FILE *file = note();

    (void)fd;
    fprintf(file, "out %d scope %d type %u flags %d noisy %d verbose %d ids %u\n", action, scope, type,
            given->sa_flags, noisy, verbose, given->num_transportid);
    hex(file, given->key, 8);
    hex(file, given->sa_key, 8);
    for (uint32_t i = 0; i < given->num_transportid; i++)
        hex(file, given->trnptid_list[i], 20);
    fclose(file);
    return answer();
}
