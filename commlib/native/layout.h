/* The layout of a segment and of the records of a table. It is commlib/runtime/shm/control.py and
 * commlib/runtime/table.py once more; a test compares them byte by byte. */
#ifndef COMMLIB_LAYOUT_H
#define COMMLIB_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum {
    LINE = 64,
    PAGE = 4096,
    VERSION = 1,
    CHANNELS = 32,
    CALLS = 8,
    HEADER = 0,
    HEADER_PID = 20,
    ENTERED = 1 * LINE,
    CORE = ENTERED + 16,
    DONE = 2 * LINE,
    DONE_SLEEPERS = DONE + 8,
    BELL = 3 * LINE,
    BELL_SLEEPERS = BELL + 4,
    WHERE = 4 * LINE,
    STATE = 5 * LINE,
    ALARM = STATE + 4,
    FAILURE = 6 * LINE,
    FAILURE_BYTES = 9 * LINE,
    STALL = 15 * LINE,
    BOARD = 16 * LINE,
    BOARD_ENTRY = 3 * LINE,
    BOARD_TEXT = BOARD_ENTRY - 40,
    AFTER_BOARD = BOARD + CALLS * BOARD_ENTRY,
};

#define MAGIC 0x636F6D6D6C696234ULL
#define NO_REGION UINT64_MAX

enum { WAIT_NOTHING, WAIT_SIGNAL, WAIT_MESSAGE, WAIT_ROOM, WAIT_GUARD, WAIT_OTHER };
enum { OWN_INPUT, OWN_OUTPUT, OWN_SCRATCH, MESSAGE_IN, MESSAGE_OUT, PEERS = 8 };
enum { MOVE, SIGNAL, WAIT, NOP };
enum { NONE = -1 };

typedef struct {
    uint64_t call, epoch, fingerprint, input, output;
    char text[BOARD_TEXT];
} BoardEntry;

typedef struct {
    uint64_t call;
    int32_t threadblock, step, peer, channel, kind, tile;
} Where;

typedef struct {
    int32_t kind, index, receive, send, peer, channel, move_low, move_high, depend_low, depend_high;
    int64_t message;
} Step;

typedef struct {
    int32_t source_low, destination_low, high, zero;
    int64_t length;
} Move;

typedef struct {
    int32_t base, zero;
    int64_t offset, stride;
} Operand;

typedef struct {
    int32_t block, steps;
} Depend;

typedef struct {
    int32_t low, high;
} Block;

typedef struct {
    int32_t peer, channel;
} Link;

typedef struct {
    uint64_t call;
    uint32_t table, state;
    uint64_t bytes, began, ended;
} Record;

enum { RECORD_RUNNING, RECORD_DONE, RECORD_FAILED };

/* SegmentLayout of control.py. */
typedef struct {
    int64_t ranks, lane, slot, depth, ring;
} Layout;

static inline int64_t layout_table(const Layout *l, int64_t number) {
    return (AFTER_BOARD + PAGE - 1) / PAGE * PAGE + number * CHANNELS * l->ranks * LINE;
}
static inline int64_t layout_signal(const Layout *l, int64_t channel, int64_t sender) {
    return layout_table(l, 0) + (channel * l->ranks + sender) * LINE;
}
static inline int64_t layout_tail(const Layout *l, int64_t channel, int64_t sender) {
    return layout_table(l, 1) + (channel * l->ranks + sender) * LINE;
}
static inline int64_t layout_credit(const Layout *l, int64_t channel, int64_t sender) {
    return layout_table(l, 2) + (channel * l->ranks + sender) * LINE;
}
static inline int64_t layout_ring_words(const Layout *l, int64_t sender) {
    return layout_table(l, 3) + sender * 2 * LINE;
}
static inline int64_t layout_control_end(const Layout *l) {
    return (layout_table(l, 3) + l->ranks * 2 * LINE + PAGE - 1) / PAGE * PAGE;
}
static inline int64_t layout_scratch(const Layout *l, int64_t lane) {
    return layout_control_end(l) + lane * l->lane;
}
static inline int64_t layout_fifo(const Layout *l, int64_t channel, int64_t sender) {
    return layout_control_end(l) + 2 * l->lane + (channel * l->ranks + sender) * l->depth * l->slot;
}
static inline int64_t layout_ring_bytes(const Layout *l, int64_t sender) {
    return layout_fifo(l, CHANNELS, 0) + sender * l->ring;
}

#endif
