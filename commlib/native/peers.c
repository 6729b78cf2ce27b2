/* What a call must know of its peers: that they call the same, and where their tensors are. */
#include "run.h"

#include <errno.h>
#ifdef __linux__
#include <sys/uio.h>
#endif

static const BoardEntry *entry_of(const Context *c, int peer) {
    return (const BoardEntry *)(c->segments[peer] + BOARD + c->calls % CALLS * BOARD_ENTRY);
}

static int mismatch(Run *r, int peer) {
    Context *c = r->context;
    take_gil(r);
    PyObject *answer = is_set(c->on_mismatch)
                           ? PyObject_CallFunction(c->on_mismatch, "i", peer)
                           : Py_NewRef(Py_None);
    if (answer)
        PyErr_Format(PyExc_RuntimeError, "rank %d's call %llu is not the same as that of rank %d", peer,
                     (unsigned long long)c->calls, c->rank);
    Py_XDECREF(answer);
    return -1;
}

int check_peer(Run *r, int peer) {
    Context *c = r->context;
    if (c->checked[peer] == c->calls) return 0;
    const BoardEntry *entry = entry_of(c, peer);
    if (load_acquire(&entry->call) != c->calls || entry->fingerprint != r->table->fingerprint) return mismatch(r, peer);
    c->checked[peer] = c->calls;
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
    uint64_t word = output ? entry_of(c, peer)->output : entry_of(c, peer)->input;
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
