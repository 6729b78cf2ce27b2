/* One call of a table: the board, then for each tile the guard and the threadblocks round robin, each as far as it
 * goes, then DONE. */
#include "run.h"

enum { LONG_WORK = 65536, /* bytes in a tile beyond which other Python threads may run meanwhile */
       LOOK_CALLS = 64 };  /* calls after which a rank says where it runs, though it need not wait */

static int blocked(Cursor *at, const char *word, uint64_t target, int kind, int peer, int channel) {
    at->word = word;
    at->target = target;
    at->kind = kind;
    at->peer = peer;
    at->channel = channel;
    return 0;
}

static int depends_met(const Table *t, const Step *s) {
    for (int i = s->depend_low; i < s->depend_high; i++) {
        const Depend *d = &t->depends[i];
        if (t->cursors[d->block].row - t->block[d->block].low < d->steps) return 0;
    }
    return 1;
}

static int signal_step(Context *c, const Step *s) {
    uint64_t *count = &c->signalled[s->channel * c->ranks + s->peer];
    store_release(c->segments[s->peer] + layout_signal(&c->layout, s->channel, c->rank), ++*count);
    remember_bell(c, s->peer);
    return 1;
}

static int wait_step(Run *r, const Step *s, Cursor *at) {
    Context *c = r->context;
    uint64_t *count = &c->waited[s->channel * c->ranks + s->peer];
    const char *word = c->segments[c->rank] + layout_signal(&c->layout, s->channel, s->peer);
    if (load_acquire(word) <= *count) return blocked(at, word, *count + 1, WAIT_SIGNAL, s->peer, s->channel);
    ++*count;
    return check_peer(r, s->peer) ? -1 : 1;
}

/* Whether the step's message is there; then it is operand base MESSAGE_IN. 1, 0, or -1. */
static int message_came(Run *r, const Link *l, Cursor *at) {
    Context *c = r->context;
    uint64_t taken = c->taken[l->channel * c->ranks + l->peer];
    char *segment = c->segments[c->rank];
    const char *tail = segment + layout_tail(&c->layout, l->channel, l->peer);
    if (load_acquire(tail) <= taken) return blocked(at, tail, taken + 1, WAIT_MESSAGE, l->peer, l->channel);
    r->bases[MESSAGE_IN] = segment + layout_fifo(&c->layout, l->channel, l->peer) +
                           (int64_t)(taken % (uint64_t)c->layout.depth) * c->layout.slot;
    return check_peer(r, l->peer) ? -1 : 1;
}

/* Whether there is room for the step's message; then it is operand base MESSAGE_OUT. */
static int has_room(Run *r, const Link *l, Cursor *at) {
    Context *c = r->context;
    uint64_t posted = c->posted[l->channel * c->ranks + l->peer], depth = (uint64_t)c->layout.depth;
    uint64_t *room = &c->room[l->channel * c->ranks + l->peer];
    char *segment = c->segments[l->peer];
    const char *credit = segment + layout_credit(&c->layout, l->channel, c->rank);
    if (posted - *room >= depth && posted - (*room = load_acquire(credit)) >= depth)
        return blocked(at, credit, posted + 1 - depth, WAIT_ROOM, l->peer, l->channel);
    r->bases[MESSAGE_OUT] = segment + layout_fifo(&c->layout, l->channel, c->rank) +
                            (int64_t)(posted % depth) * c->layout.slot;
    return 1;
}

static int move_step(Run *r, const Step *s, Cursor *at) {
    Context *c = r->context;
    const Link *in = s->receive < 0 ? NULL : &r->table->receives[s->receive];
    const Link *out = s->send < 0 ? NULL : &r->table->sends[s->send];
    int go = in ? message_came(r, in, at) : 1;
    if (go > 0 && out) go = has_room(r, out, at);
    if (go <= 0) return go;
    if (do_moves(r, s)) return -1;
    if (in) {
        uint64_t taken = ++c->taken[in->channel * c->ranks + in->peer];
        store_release(c->segments[c->rank] + layout_credit(&c->layout, in->channel, in->peer), taken);
        remember_bell(c, in->peer);
    }
    if (out) {
        uint64_t posted = ++c->posted[out->channel * c->ranks + out->peer];
        store_release(c->segments[out->peer] + layout_tail(&c->layout, out->channel, c->rank), posted);
        remember_bell(c, out->peer);
    }
    return 1;
}

static int trace_step(Run *r, int b, Cursor *at) {
    const Table *t = r->table;
    if (at->traced > at->row) return 0;
    at->traced = at->row + 1;
    take_gil(r);
    PyObject *hook = Py_NewRef(r->context->trace);
    PyObject *answer = PyObject_CallFunction(hook, "iii", t->threadblocks[b], t->steps[at->row].index, (int)r->tile);
    Py_DECREF(hook);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

/* 1: the step is done; 0: it waits, and the cursor says for what; -1: an exception. */
static int try_step(Run *r, int b, Cursor *at) {
    const Step *s = &r->table->steps[at->row];
    if (is_set(r->context->trace) && trace_step(r, b, at)) return -1;
    if (s->depend_low < s->depend_high && !depends_met(r->table, s))
        return blocked(at, NULL, 0, WAIT_OTHER, NONE, NONE);
    switch (s->kind) {
    case MOVE: return move_step(r, s, at);
    case SIGNAL: return signal_step(r->context, s);
    case WAIT: return wait_step(r, s, at);
    default: return 1;
    }
}

static int run_tile(Run *r) {
    Table *t = r->table;
    int left = 0;
    for (int b = 0; b < t->blocks; b++) {
        t->cursors[b] = (Cursor){.row = t->block[b].low};
        left += t->block[b].low < t->block[b].high;
    }
    while (left) {
        int moved = 0;
        for (int b = 0; b < t->blocks; b++) {
            Cursor *at = &t->cursors[b];
            int done = 1;
            while (at->row < t->block[b].high && (done = try_step(r, b, at)) > 0) {
                moved = 1;
                left -= ++at->row == t->block[b].high;
            }
            if (done < 0) return -1;
        }
        if (!moved && left && wait_any(r)) return -1;
    }
    return 0;
}

/* Until nobody works any more in the lane that this epoch will use. */
static int guard(Run *r, uint64_t epoch) {
    Context *c = r->context;
    if (epoch <= 2) return 0;
    r->guard_epoch = epoch - 2;
    for (int p = 0; p < c->ranks; p++) {
        if (p == c->rank || c->done[p] >= r->guard_epoch) continue;
        r->guard = p;
        uint64_t done = load_acquire(c->segments[p] + DONE);
        if (done < r->guard_epoch && wait_any(r)) return -1;
        c->done[p] = load_acquire(c->segments[p] + DONE);
    }
    r->guard = NONE;
    return check_guarded(r);
}

static int run_epoch(Run *r) {
    Context *c = r->context;
    uint64_t epoch = ++c->epochs;
    r->bases = c->bases[epoch & 1];
    if (!c->synchronized && guard(r, epoch)) return -1;
    int some = r->tile < r->table->tiles;
    if (some && run_tile(r)) return -1;
    c->synchronized = some && r->table->synchronizing;
    if (c->synchronized) c->agreed = c->calls;
    char *segment = c->segments[c->rank];
    store_fenced(segment + DONE, epoch);
    if (load_relaxed32(segment + DONE_SLEEPERS))
        for (int p = 0; p < c->ranks; p++) ring_if_asleep(c->segments[p]);
    return 0;
}

static void write_board(Run *r, uint64_t input, uint64_t output) {
    Context *c = r->context;
    const Table *t = r->table;
    uint64_t call = ++c->calls;
    BoardEntry *entry = (BoardEntry *)(c->segments[c->rank] + BOARD + call % CALLS * BOARD_ENTRY);
    entry->epoch = c->epochs + 1;
    entry->fingerprint = t->fingerprint;
    entry->input = input;
    entry->output = output;
    if (c->texts[call % CALLS] != t->number) memcpy(entry->text, t->text, sizeof entry->text);
    c->texts[call % CALLS] = t->number;
    store_release(&entry->call, call);
    store_release(c->segments[c->rank] + WHERE, call);
    store_release(c->segments[c->rank] + ENTERED, call);
}

static void set_bases(Context *c, const Table *t, char *input, char *output) {
    for (int lane = 0; lane < 2; lane++) {
        char **bases = c->bases[lane];
        bases[OWN_INPUT] = bases[PEERS + 3 * c->rank] = input;
        bases[OWN_OUTPUT] = bases[PEERS + 3 * c->rank + 1] = output;
        for (int i = 0; i < t->foreign; i++) bases[t->tensors[i]] = NULL;
    }
}

/* Not where most of the output is an input that has just been read: it is in the cache already. */
static Stream stream_of(const Table *t, const char *input, const char *output) {
    int overlap = input < output + t->output_extent && output < input + t->input_extent;
    return overlap && 2 * t->input_extent > t->output_extent ? NULL : t->stream;
}

static Record *begin_record(Context *c, const Table *t) {
    if (!c->n_records) return NULL;
    Record *record = &c->records[c->recorded++ % (uint64_t)c->n_records];
    *record = (Record){c->calls, t->number, RECORD_RUNNING, t->bytes, now_ns(), 0};
    return record;
}

static int may_run(const Context *c, const Table *t) {
    const char *why = NULL;
    if (t->owner != c->serial) why = "the table belongs to another context";
    if (c->busy) why = "a call of this or another thread is running on this context";
    if (c->broken) why = "an earlier call of this context failed; open a new one";
    if (c->closed) return PyErr_SetObject(c->refused_error, c->why), 0;
    if (why) PyErr_SetString(c->refused_error, why);
    return !why;
}

/* The rank has an alarm: whoever watches over it may refuse the call. Python may run meanwhile, so it is a call. */
static int refused(Run *r) {
    Context *c = r->context;
    if (!load_relaxed32(c->segments[c->rank] + ALARM)) return 0;
    c->busy = r->idle = 1;
    int bad = tell_stall(r, 0);
    c->busy = r->idle = 0;
    return bad;
}

/* Tell the owner of the exception that ends this call; the exception stays as it is. */
static void tell_error(Context *c) {
    if (!is_set(c->on_error)) return;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *hook = Py_NewRef(c->on_error);
    PyObject *answer = PyObject_CallFunctionObjArgs(hook, value, NULL);
    if (!answer) PyErr_WriteUnraisable(hook);
    Py_XDECREF(answer);
    Py_DECREF(hook);
    PyErr_Restore(type, value, traceback);
}

int run_call(Context *c, Table *t, char *input, char *output, uint64_t input_word, uint64_t output_word) {
    if (!may_run(c, t)) return -1;
    Run r = {.context = c, .table = t, .guard = NONE};
    if (refused(&r)) return -1;
    c->busy = 1;
    set_bases(c, t, input, output);
    write_board(&r, input_word, output_word);
    Record *record = begin_record(c, t);
    if (t->stream) r.stream = stream_of(t, input, output);
    if (t->work > LONG_WORK) give_up_gil(&r);
    int bad = 0;
    do bad = run_epoch(&r); /* also one without data is an epoch: else this rank could be many calls ahead of others */
    while (!bad && ++r.tile < t->tiles);
    ring_bells(c);
    if (!c->roomy || c->calls % LOOK_CALLS == 0) leave_shared_core(c); /* who comes last never waits in a call */
    take_gil(&r);
    if (record) {
        record->ended = now_ns();
        record->state = bad ? RECORD_FAILED : RECORD_DONE;
    }
    c->broken = bad != 0;
    c->busy = 0;
    if (bad) tell_error(c);
    return bad;
}
