/* Rings: a stream of bytes from each rank to each other, for send and recv. */
#include "core.h"

#include <sched.h>

typedef struct {
    char *written, *read, *bytes;
} Ring;

/* The ring in the receiver's segment that the sender writes. */
static Ring ring_of(const Context *c, int receiver, int sender) {
    char *segment = c->segments[receiver];
    char *words = segment + layout_ring_words(&c->layout, sender);
    return (Ring){words, words + LINE, segment + layout_ring_bytes(&c->layout, sender)};
}

static void into_ring(const Context *c, const Ring *ring, uint64_t at, const char *from, int64_t bytes) {
    int64_t low = (int64_t)(at % (uint64_t)c->layout.ring), first = c->layout.ring - low;
    if (first > bytes) first = bytes;
    memcpy(ring->bytes + low, from, (size_t)first);
    memcpy(ring->bytes, from + first, (size_t)(bytes - first));
}

static void out_of_ring(const Context *c, const Ring *ring, uint64_t at, char *to, int64_t bytes) {
    int64_t low = (int64_t)(at % (uint64_t)c->layout.ring), first = c->layout.ring - low;
    if (first > bytes) first = bytes;
    memcpy(to, ring->bytes + low, (size_t)first);
    memcpy(to + first, ring->bytes, (size_t)(bytes - first));
}

int64_t ring_write(Context *c, int peer, const char *from, int64_t bytes) {
    Ring ring = ring_of(c, peer, c->rank);
    uint64_t written = load_acquire(ring.written), read = load_acquire(ring.read);
    int64_t room = c->layout.ring - (int64_t)(written - read);
    c->ring_out[peer] = read;
    if (bytes > room) bytes = room;
    if (bytes <= 0) return 0;
    into_ring(c, &ring, written, from, bytes);
    store_fenced(ring.written, written + (uint64_t)bytes);
    ring_if_asleep(c->segments[peer]);
    return bytes;
}

int64_t ring_read(Context *c, int peer, char *to, int64_t bytes) {
    Ring ring = ring_of(c, c->rank, peer);
    uint64_t written = load_acquire(ring.written), read = load_acquire(ring.read);
    c->ring_in[peer] = written;
    if (bytes > (int64_t)(written - read)) bytes = (int64_t)(written - read);
    if (bytes <= 0) return 0;
    out_of_ring(c, &ring, read, to, bytes);
    store_fenced(ring.read, read + (uint64_t)bytes);
    ring_if_asleep(c->segments[peer]);
    return bytes;
}

/* Whether a ring has changed since it was last looked at; this looks at all of them. */
static int rings_changed(Context *c) {
    int changed = 0;
    for (int p = 0; p < c->ranks; p++) {
        if (p == c->rank) continue;
        uint64_t written = load_acquire(ring_of(c, c->rank, p).written), read = load_acquire(ring_of(c, p, c->rank).read);
        changed |= written != c->ring_in[p] || read != c->ring_out[p];
        c->ring_in[p] = written;
        c->ring_out[p] = read;
    }
    return changed;
}

/* Without the GIL. Whether a ring changes within `timeout` seconds, or has since it was last looked at. */
int wait_rings(Context *c, double timeout) {
    for (int i = 0; i < c->spins + c->yields; i++) {
        if (rings_changed(c)) return 1;
        if (i < c->spins)
            pause_cpu();
        else
            sched_yield();
    }
    char *segment = c->segments[c->rank];
    uint64_t ns = timeout < 1e9 ? (uint64_t)(timeout * 1e9) : 1000000000000000000u, began = now_ns();
    int changed;
    while (!(changed = rings_changed(c))) {
        uint64_t gone = now_ns() - began;
        if (gone >= ns) break;
        add32(segment + BELL_SLEEPERS, 1);
        uint32_t seen = load_acquire32(segment + BELL);
        fence();
        changed = rings_changed(c); /* a look takes note of what it sees: the next one would find nothing new */
        if (!changed) futex_wait(segment + BELL, seen, (int64_t)(ns - gone));
        add32(segment + BELL_SLEEPERS, -1);
        if (changed) break;
    }
    return changed;
}
