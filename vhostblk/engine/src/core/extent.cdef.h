/* SPDX-License-Identifier: Apache-2.0 */
/* An extent map: where a device's bytes lie, and what may be done with them without asking. Python
 * fills it in and publishes it to ports (`vb_port_set_map`); whatever it does not cover goes up. */
enum vb_extent_kind {
    VB_EXTENT_NONE,   /* everything goes up */
    VB_EXTENT_NULL,   /* no storage: writes vanish, reads leave the buffer, or zero it */
    VB_EXTENT_LINEAR, /* byte n is byte offset + n of the file */
    VB_EXTENT_TABLE,  /* one entry a cluster */
};

enum vb_extent_flags {
    VB_EXTENT_READ_ZEROES = 1, /* null: reads give zeroes */
    VB_EXTENT_WRITE = 2,       /* writes are allowed */
    VB_EXTENT_BUFFERED = 4,    /* through the page cache: worth an attempt at once */
    VB_EXTENT_ZERO_RANGE = 8,  /* fallocate can zero a range */
    VB_EXTENT_FLUSH = 16,      /* flushes go to the file, or ... */
    VB_EXTENT_NO_FLUSH = 32,   /* ... are ignored; neither: up */
    VB_EXTENT_DISCARD = 64,    /* likewise for discards */
    VB_EXTENT_NO_DISCARD = 128,
    VB_EXTENT_IN_MEMORY = 256, /* the file system never waits for a disk (tmpfs) */
};

/* The low bits of a table entry; the rest is the file offset of the cluster. */
enum vb_extent_entry {
    VB_ENTRY_READ = 1,      /* reads come from the file */
    VB_ENTRY_OVERWRITE = 2, /* writes go to the file */
    VB_ENTRY_ZERO = 4,      /* reads give zeroes */
    /* The metadata that refers to the cluster is not on stable storage yet: writes that must be
     * durable when they complete go to the node. Two bits: one for entries that the running flush
     * covers, one for the others. */
    VB_ENTRY_VOLATILE = 24,
};

/* What is to be done with a range. */
enum vb_extent_access {
    VB_ACCESS_READ,
    VB_ACCESS_WRITE,
    VB_ACCESS_WRITE_THROUGH, /* on stable storage when it completes */
};

/* How it is done. */
enum vb_extent_verdict {
    VB_GO_UP,   /* ask Python */
    VB_GO_FILE, /* at *file_offset of the map's file */
    VB_GO_ZERO, /* reads as zeroes */
    VB_GO_NULL, /* nothing at all */
};

struct vb_extent_map {
    uint32_t kind;
    uint32_t flags;
    int32_t fd;
    uint32_t alignment; /* of offsets, lengths and addresses; a power of two */
    uint64_t size;      /* bytes of the device that the map covers */
    uint64_t offset;    /* linear */
    uint32_t cluster_bits;
    /* Shared by all who flush the file, or write with RWF_DSYNC. NULL if the page cache has none of its
     * data: then an operation's error concerns no other operation. */
    struct vb_sync *sync;
    const uint64_t *table; /* (size rounded up to clusters) entries */
    /* What reads and writes are accounted for in, or NULL; those that it lacks the means for go up,
     * as do discards and zero writes that are to be done. */
    struct vb_budget *budget;
};

/* Whether an open file is on a file system that keeps it in memory. */
int vb_file_in_memory(int fd);
