/* The objects of the core: a Context (one rank's place in a group), a Table (one rank's launch), a Planned call. */
#ifndef COMMLIB_CORE_H
#define COMMLIB_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"
#include "layout.h"
#include "wait.h"

typedef struct Context Context;

/* Where a threadblock is in this tile, and what it waits for if it does. */
typedef struct {
    int32_t row, traced;
    const char *word; /* of another rank or of this one; NULL: it waits for a threadblock of this table */
    uint64_t target;
    int32_t kind, peer, channel;
} Cursor;

typedef struct {
    PyObject_HEAD
    const Context *context; /* while the table is made: no reference, so that there is no cycle through it */
    uint64_t owner;         /* the context's serial number */
    uint32_t number;
    int32_t blocks, reach, synchronizing, foreign;
    int64_t width, tiles, itemsize;
    uint64_t fingerprint, bytes, work; /* bytes written over all tiles; bytes read and written in a full tile */
    Combine combine;
    int64_t input_extent, output_extent; /* bytes from the tensors' beginning that the table touches */
    Stream stream; /* NULL: the outputs are not so large that they should pass the caches */
    Step *steps;
    Move *moves;
    Operand *operands;
    Depend *depends;
    Block *block;
    Link *sends, *receives;
    int32_t *threadblocks;
    int32_t *tensors; /* bases of other ranks' inputs and outputs that are used; `foreign` of them */
    uint8_t *remote;  /* of each move: reads such a base */
    uint8_t *outputs; /* of each move: writes its own output */
    Cursor *cursors;
    char **addresses; /* room for those of one move's operands */
    int64_t n_steps, n_moves, n_operands, n_depends, n_sends, n_receives;
    char text[BOARD_TEXT];
} Table;

typedef struct {
    int32_t peer;
    uint64_t number;
    char *address;
    uint64_t size;
} Region;

typedef struct Regions Regions;

struct Context {
    PyObject_HEAD
    int32_t rank, ranks, spins, yields;
    int32_t roomy, patience, hopeless; /* see look_longer in idle.c */
    int32_t shares;                    /* there could be a core for each rank, but another is on this one */
    uint64_t next_move;                /* see cores.c */
    int64_t gap;
    Layout layout;
    char **segments;
    /* [channel * ranks + peer] */
    uint64_t *signalled, *waited, *posted, *taken, *room;
    uint64_t *checked;  /* [peer]: the last call whose board entry has been compared */
    uint64_t agreed;    /* the last call that was the same on all ranks, because its table let none pass alone */
    uint64_t *done;     /* [peer]: the last DONE that was seen */
    uint64_t *ring_in, *ring_out; /* [peer]: the words of the rings when they were last looked at */
    char **bases[2];    /* addresses of operands' bases, for each lane */
    int32_t *to_ring, ringing;
    uint8_t *rings;     /* [peer]: is in to_ring */
    Regions *regions;
    uint64_t serial, calls, epochs;
    int64_t texts[CALLS]; /* number of the table whose text stands in each board entry */
    int64_t slice_ns;
    int32_t synchronized, busy, broken, closed;
    double timeout;
    uint32_t tables;
    Record *records;
    int64_t n_records;
    uint64_t recorded;
    char *staging; /* for what is read out of other processes */
    int64_t staging_bytes;
    PyObject *on_stall, *on_mismatch, *on_error, *trace, *spec_error, *refused_error;
    PyObject *why; /* it is closed */
};

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    Context *context;
    Table *table;
    char *input, *output;
    uint64_t input_word, output_word;
    double timeout; /* negative: as it is */
} Planned;

/* Whether a hook is one; a deleted one is NULL. */
static inline int is_set(const PyObject *hook) {
    return hook && hook != Py_None;
}

extern PyTypeObject ContextType, TableType, PlannedType, ReplayType;

/* table.c: a Table from a RankTable; NULL with ValueError if it would go out of bounds. */
Table *table_new(Context *context, PyObject *rank_table, uint64_t fingerprint, PyObject *text, int reach);

/* regions.c */
void free_regions(Regions *list);
int add_region(Context *context, int peer, uint64_t number, char *address, uint64_t size);
uint64_t region_word(const Context *context, const char *address);
char *region_address(const Context *context, int peer, uint64_t word);

/* run.c: one call; 0, or -1 with an exception. Needs the GIL, gives it up while it waits and for long work. */
int run_call(Context *context, Table *table, char *input, char *output, uint64_t input_word, uint64_t output_word);

/* bells.c */
void remember_bell(Context *context, int peer);
void ring_bells(Context *context);
void ring_if_asleep(char *segment);

/* rings.c */
int64_t ring_write(Context *context, int peer, const char *from, int64_t bytes);
int64_t ring_read(Context *context, int peer, char *to, int64_t bytes);
int wait_rings(Context *context, double timeout);

#endif
