/* Registered memory: which part of it an address lies in, and where a peer's part lies as mapped here. */
#include "core.h"

enum { OFFSET_BITS = 48 };

/* Size 0: the region is no more. */
int add_region(Context *c, int peer, uint64_t number, char *address, uint64_t size) {
    int64_t kept = 0; /* those of other numbers; their order stays */
    for (int64_t i = 0; i < c->n_regions; i++)
        if (c->regions[i].peer != peer || c->regions[i].number != number) c->regions[kept++] = c->regions[i];
    c->n_regions = kept;
    if (!size) return 0;
    Region *grown = PyMem_Realloc(c->regions, (size_t)(c->n_regions + 1) * sizeof *grown);
    if (!grown) return PyErr_NoMemory(), -1;
    grown[c->n_regions] = (Region){peer, number, address, size};
    c->regions = grown;
    c->n_regions++;
    return 0;
}

/* The word for the board: region << 48 | offset, or NO_REGION. Newer regions first: old ones may be gone. */
uint64_t region_word(const Context *c, const char *address) {
    for (int64_t i = c->n_regions - 1; i >= 0; i--) {
        const Region *r = &c->regions[i];
        if (r->peer == c->rank && address >= r->address && (uint64_t)(address - r->address) < r->size)
            return r->number << OFFSET_BITS | (uint64_t)(address - r->address);
    }
    return NO_REGION;
}

char *region_address(const Context *c, int peer, uint64_t word) {
    uint64_t number = word >> OFFSET_BITS, offset = word & ((1ULL << OFFSET_BITS) - 1);
    for (int64_t i = 0; word != NO_REGION && i < c->n_regions; i++) {
        const Region *r = &c->regions[i];
        if (r->peer == peer && r->number == number && offset < r->size) return r->address + offset;
    }
    return NULL;
}
