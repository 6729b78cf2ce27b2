/* One call while it runs. */
#ifndef COMMLIB_RUN_H
#define COMMLIB_RUN_H

#include "core.h"

typedef struct {
    Context *context;
    Table *table;
    int64_t tile;
    char **bases;         /* of this tile's lane */
    PyThreadState *saved; /* not NULL: the GIL has been given up */
    int32_t guard;        /* the rank whose DONE is waited for, or NONE */
    uint64_t guard_epoch;
    Stream stream;        /* how its own output is written, if not plainly */
    int idle; /* the call has not begun: nothing is waited for */
} Run;

static inline void give_up_gil(Run *r) {
    if (!r->saved) r->saved = PyEval_SaveThread();
}
static inline void take_gil(Run *r) {
    if (r->saved) PyEval_RestoreThread(r->saved);
    r->saved = NULL;
}

/* All return 0, or -1 with an exception set and the GIL held. */

/* moves.c: the moves of a step; the address of a base that each call finds anew. */
int do_moves(Run *r, const Step *s);

/* peers.c: that the peer is in the same call with the same table, and was in all before, by its entries on the board;
 * that all peers were up to the call of the epoch that the guard has waited for. */
int check_peer(Run *r, int peer);
int check_guarded(Run *r);
char *find_tensor(Run *r, int base);
int read_peer(Run *r, int peer, char *to, const char *from, size_t bytes);

/* idle.c: until a threadblock, or the guard, can go on. */
int wait_any(Run *r);

/* cores.c: if this rank waits on the core of a lower one, though there is one for each, it goes to another. */
void leave_shared_core(Context *c);

int tell_stall(Run *r, uint64_t ns);

#endif
