/* What a call must know of its peers: that they call the same, and where their tensors are. */
#include "run.h"

#include <errno.h>
#ifdef __linux__
#include <sys/uio.h>
#endif

static const BoardEntry *entry_of(const Context *c, int peer, uint64_t call) {
    return (const BoardEntry *)(c->segments[peer] + BOARD + call % CALLS * BOARD_ENTRY);
}

static int mismatch(Run *r, int peer, uint64_t call) {
    Context *c = r->context;
    take_gil(r);
    PyObject *hook = is_set(c->on_mismatch) ? Py_NewRef(c->on_mismatch) : NULL;
    PyObject *answer = hook ? PyObject_CallFunction(hook, "i", peer) : Py_NewRef(Py_None);
    Py_XDECREF(hook);
    if (answer)
        PyErr_Format(PyExc_RuntimeError, "rank %d's call %llu is not the same as that of rank %d", peer,
                     (unsigned long long)call, c->rank);
    Py_XDECREF(answer);
    return -1;
}

/* A call in which a rank waits for nobody compares nothing. If it was not the peer's call, its signals are still there
 * and would be taken for those of a later one: so the first thing that comes from a peer in a call is used only when
 * all calls since the last comparison were the same. A satisfied guard compares what no wait has, before the board's
 * entries go: they are of the call before the last, and the peer has begun at most two calls after this one. */
static int same_calls(Run *r, int peer, uint64_t last) {
    Context *c = r->context;
    uint64_t call = c->checked[peer] > c->agreed ? c->checked[peer] : c->agreed;
    while (++call <= last) {
        const BoardEntry *theirs = entry_of(c, peer, call), *ours = entry_of(c, c->rank, call);
        if (load_acquire(&theirs->call) != call || theirs->fingerprint != ours->fingerprint)
            return mismatch(r, peer, call);
        c->checked[peer] = call;
    }
    return 0;
}

int check_peer(Run *r, int peer) {
    return r->context->checked[peer] == r->context->calls ? 0 : same_calls(r, peer, r->context->calls);
}

int check_guarded(Run *r) {
    const Context *c = r->context;
    uint64_t last = c->calls;
    while (last > c->agreed && entry_of(c, c->rank, last)->epoch > r->guard_epoch) last--;
    for (int p = 0; p < c->ranks; p++)
        if (p != c->rank && same_calls(r, p, last)) return -1;
    return 0;
}

/* The address of another rank's input or output: what it wrote on the board, as mapped here or as it has it. */
char *find_tensor(Run *r, int base) {
    Context *c = r->context;
    if (base < PEERS) {
        take_gil(r);
        PyErr_Format(PyExc_ValueError, "the call has no address for its own %s", base == OWN_INPUT ? "input" : "output");
        return NULL;
    }
    int peer = (base - PEERS) / 3, output = (base - PEERS) % 3;
    if (check_peer(r, peer)) return NULL;
    uint64_t word = output ? entry_of(c, peer, c->calls)->output : entry_of(c, peer, c->calls)->input;
    char *address = r->table->reach == 2 ? (char *)(uintptr_t)word : region_address(c, peer, word);
    c->bases[0][base] = c->bases[1][base] = address;
    if (address) return address;
    take_gil(r);
    PyErr_Format(c->spec_error, "the %s of rank %d is not in registered memory; register it on all ranks",
                 output ? "output" : "input", peer);
    return NULL;
}

int read_peer(Run *r, int peer, char *to, const char *from, size_t bytes) {
    int error = ENOSYS;
#ifdef __linux__
    pid_t pid = (pid_t)load_relaxed32(r->context->segments[peer] + HEADER_PID);
    while (bytes) {
        struct iovec here = {to, bytes}, there = {(void *)from, bytes};
        ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
        if (got <= 0) {
            if (got < 0 && errno == EINTR) continue;
            error = got < 0 ? errno : EFAULT;
            break;
        }
        to += got, from += got, bytes -= (size_t)got;
    }
#endif
    if (!bytes) return 0;
    take_gil(r);
    PyErr_Format(PyExc_OSError, "rank %d cannot read the memory of rank %d: %s", r->context->rank, peer,
                 strerror(error));
    return -1;
}
