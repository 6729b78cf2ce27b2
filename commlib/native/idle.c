/* Waiting: pauses, then yields, then sleep on the bell, one slice after the other. */
#include "run.h"

#include <sched.h>

/* A wake-up takes up to 60 us on a busy machine; a pause about 40 ns. */
enum { PATIENT_WAITS = 8, LONGER_SPIN = 30, LONGER_YIELD = 5, SHARING_YIELDS = 4 };

static int can_go_on(const Run *r) {
    const Table *t = r->table;
    if (r->guard != NONE) return load_acquire(r->context->segments[r->guard] + DONE) >= r->guard_epoch;
    for (int b = 0; b < t->blocks; b++) {
        const Cursor *at = &t->cursors[b];
        if (at->row < t->block[b].high && at->word && load_acquire(at->word) >= at->target) return 1;
    }
    return 0;
}

/* (threadblock, step, kind, peer, channel) of what a threadblock waits for. */
static PyObject *wait_of(const Table *t, int b) {
    const Cursor *at = &t->cursors[b];
    return Py_BuildValue("(iiiii)", t->threadblocks[b], t->steps[at->row].index, at->kind, at->peer, at->channel);
}

static PyObject *all_waits(const Run *r) {
    const Table *t = r->table;
    if (r->idle) return PyTuple_New(0);
    if (r->guard != NONE) return Py_BuildValue("((iiiii))", NONE, NONE, WAIT_GUARD, r->guard, NONE);
    PyObject *waits = PyList_New(0);
    for (int b = 0; waits && b < t->blocks; b++) {
        if (t->cursors[b].row >= t->block[b].high) continue;
        PyObject *one = wait_of(t, b);
        if (!one || PyList_Append(waits, one)) Py_CLEAR(waits);
        Py_XDECREF(one);
    }
    PyObject *frozen = waits ? PyList_AsTuple(waits) : NULL;
    Py_XDECREF(waits);
    return frozen;
}

int tell_stall(Run *r, uint64_t ns) {
    take_gil(r);
    if (PyErr_CheckSignals()) return -1;
    if (!is_set(r->context->on_stall)) return 0;
    PyObject *waits = all_waits(r);
    PyObject *hook = Py_NewRef(r->context->on_stall); /* it may be replaced meanwhile */
    PyObject *answer = waits ? PyObject_CallFunction(hook, "dO", (double)ns * 1e-9, waits) : NULL;
    Py_DECREF(hook);
    Py_XDECREF(waits);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

static void write_where(const Run *r) {
    const Context *c = r->context;
    const Table *t = r->table;
    Where where = {c->calls, NONE, NONE, r->guard, NONE, WAIT_GUARD, (int32_t)r->tile};
    for (int b = t->blocks - 1; b >= 0 && r->guard == NONE; b--) {
        const Cursor *at = &t->cursors[b];
        if (at->row >= t->block[b].high) continue;
        if (at->kind == WAIT_OTHER && where.kind != WAIT_GUARD) continue; /* rather one that waits for a peer */
        where = (Where){c->calls,    t->threadblocks[b], t->steps[at->row].index, at->peer,
                        at->channel, at->kind,           (int32_t)r->tile};
    }
    memcpy(c->segments[c->rank] + WHERE, &where, sizeof where);
}

/* One sleep. The count of sleepers is raised, then all is looked at once more; who changes it does the reverse. */
static void sleep_once(const Run *r) {
    const Context *c = r->context;
    char *bell = c->segments[c->rank] + BELL, *sleepers = c->segments[c->rank] + BELL_SLEEPERS;
    char *watched = r->guard == NONE ? NULL : c->segments[r->guard] + DONE_SLEEPERS;
    add32(sleepers, 1);
    if (watched) add32(watched, 1);
    uint32_t seen = load_acquire32(bell);
    fence();
    if (!can_go_on(r)) futex_wait(bell, seen, c->slice_ns);
    if (watched) add32(watched, -1);
    add32(sleepers, -1);
}

static int alarmed(const Context *c) {
    return load_acquire32(c->segments[c->rank] + ALARM) != 0;
}

static int sleep_until(Run *r) {
    const Context *c = r->context;
    uint64_t began = now_ns(), told = began;
    int look = alarmed(c); /* the bell may have rung before this rank slept */
    while (!can_go_on(r)) {
        uint64_t now = now_ns();
        if (look || now - told >= (uint64_t)c->slice_ns) {
            told = now;
            if (tell_stall(r, now - began)) return -1;
        }
        give_up_gil(r);
        sleep_once(r);
        look = alarmed(c);
    }
    return 0;
}

/* Two ranks that have slept must wake each other, which takes longer than their usual look: each would find the other
 * not yet awake and sleep again, call after call. So the waits after a sleep look longer, unless that did not help, and
 * where each rank can have a core. `slept`: how the wait before ended. */
static void look_longer(Context *c, int slept) {
    if (!slept) {
        c->patience -= c->patience > 0;
        c->hopeless = 0;
    } else if (c->patience) {
        c->patience = 0;
        c->hopeless = 1;
    } else if (!c->hopeless && c->roomy) {
        c->patience = PATIENT_WAITS;
    }
}

static int comes_soon(Run *r) {
    Context *c = r->context;
    int64_t spins = c->shares ? 0 : (int64_t)c->spins * (c->patience ? LONGER_SPIN : 1);
    for (int64_t i = 0; i < spins; i++) {
        if (can_go_on(r)) return 1;
        pause_cpu();
    }
    give_up_gil(r);
    leave_shared_core(c);
    int64_t yields = (int64_t)c->yields * (c->patience ? LONGER_YIELD : 1);
    if (c->shares && yields > SHARING_YIELDS) yields = SHARING_YIELDS;
    for (int64_t i = 0; i < yields; i++) {
        if (can_go_on(r)) return 1;
        sched_yield();
    }
    return 0;
}

int wait_any(Run *r) {
    Context *c = r->context;
    ring_bells(c);
    int soon = comes_soon(r);
    look_longer(c, !soon);
    if (soon) return 0;
    write_where(r);
    if (sleep_until(r)) return -1; /* WHERE stays: it says where the call ended */
    memset(c->segments[c->rank] + WHERE + sizeof(uint64_t), 0, sizeof(Where) - sizeof(uint64_t));
    return 0;
}
