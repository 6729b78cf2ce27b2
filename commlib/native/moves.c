/* Moves: where their operands are in this tile, then one pass over memory. */
#include "run.h"

enum { STAGE_BYTES = 65536, STREAM_BLOCK = 16384 };

/* Sources that can only be read through the system are brought here block by block. `from` holds all sources. */
static int combine_remote(Run *r, const Move *m, char **to, int tos, char **from, int froms, size_t bytes) {
    Context *c = r->context;
    Table *t = r->table;
    if (c->staging_bytes < (int64_t)froms * STAGE_BYTES) {
        char *grown = PyMem_RawRealloc(c->staging, (size_t)froms * STAGE_BYTES);
        if (!grown) return take_gil(r), PyErr_NoMemory(), -1;
        c->staging = grown;
        c->staging_bytes = (int64_t)froms * STAGE_BYTES;
    }
    const char *near[froms];
    char *out[tos + 1];
    for (size_t at = 0; at < bytes; at += STAGE_BYTES) {
        size_t part = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
        for (int i = 0; i < froms; i++) {
            int base = t->operands[m->source_low + i].base;
            near[i] = from[i] + at;
            if (base < PEERS || (base - PEERS) % 3 == 2 || (base - PEERS) / 3 == c->rank) continue;
            near[i] = c->staging + i * STAGE_BYTES;
            if (read_peer(r, (base - PEERS) / 3, (char *)near[i], from[i] + at, part)) return -1;
        }
        for (int i = 0; i < tos; i++) out[i] = to[i] + at;
        t->combine(out, tos, near, froms, part);
    }
    return 0;
}

static int copy_remote(Run *r, const Move *m, char **to, int tos, const char *from, size_t bytes) {
    int peer = (r->table->operands[m->source_low].base - PEERS) / 3;
    if (tos && read_peer(r, peer, to[0], from, bytes)) return -1;
    if (tos > 1) copy_all(to + 1, tos - 1, to[0], bytes);
    return 0;
}

/* Its own output is written past the caches, the rest is not; in blocks that the first-level cache holds. */
static void stream_move(const Run *r, const Move *m, char **to, int tos, const char **from, int froms, size_t bytes) {
    const Table *t = r->table;
    char sums[STREAM_BLOCK] __attribute__((aligned(64)));
    char *const out[] = {sums};
    const char *near[froms];
    for (size_t at = 0; at < bytes; at += STREAM_BLOCK) {
        size_t part = bytes - at < STREAM_BLOCK ? bytes - at : STREAM_BLOCK;
        for (int i = 0; i < froms; i++) near[i] = from[i] + at;
        if (froms > 1) t->combine(out, 1, near, froms, part);
        const char *result = froms > 1 ? sums : near[0];
        for (int i = 0; i < tos; i++) {
            if (to[i] + at == result) continue;
            if (t->operands[m->destination_low + i].base == OWN_OUTPUT)
                r->stream(to[i] + at, result, part);
            else
                memcpy(to[i] + at, result, part);
        }
    }
}

static int do_move(Run *r, const Move *m, size_t bytes) {
    Table *t = r->table;
    char **address = t->addresses;
    int froms = m->destination_low - m->source_low, tos = m->high - m->destination_low;
    for (int i = 0; i < froms + tos; i++) {
        const Operand *o = &t->operands[m->source_low + i];
        char *base = r->bases[o->base];
        if (!base && !(base = find_tensor(r, o->base))) return -1;
        address[i] = base + o->offset + r->tile * o->stride;
    }
    int remote = t->reach == 2 && t->remote[m - t->moves];
    if (r->stream && t->outputs[m - t->moves] && !remote && bytes >= STREAM_BLOCK / 4)
        return stream_move(r, m, address + froms, tos, (const char **)address, froms, bytes), 0;
    if (froms == 1)
        return remote ? copy_remote(r, m, address + 1, tos, address[0], bytes)
                      : (copy_all(address + 1, tos, address[0], bytes), 0);
    if (remote) return combine_remote(r, m, address + froms, tos, address, froms, bytes);
    t->combine(address + froms, tos, (const char *const *)address, froms, bytes);
    return 0;
}

int do_moves(Run *r, const Step *s) {
    const Table *t = r->table;
    for (int i = s->move_low; i < s->move_high; i++) {
        const Move *m = &t->moves[i];
        int64_t elements = m->length;
        if (t->tiles > 1) {
            elements -= r->tile * t->width;
            if (elements > t->width) elements = t->width;
        }
        if (elements > 0 && do_move(r, m, (size_t)(elements * t->itemsize))) return -1;
    }
    return 0;
}
