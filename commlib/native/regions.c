/* Registered memory: which part of it an address lies in, and where a peer's part lies as mapped here.
 *
 * Calls look regions up without the GIL while another thread may register more: the list is never changed, but
 * replaced by a new one; old ones are kept until no call runs. */
#include "core.h"

enum { OFFSET_BITS = 48 };

struct Regions {
    Regions *older;
    int64_t count;
    Region items[];
};

void free_regions(Regions *list) {
    while (list) {
        Regions *older = list->older;
        PyMem_Free(list);
        list = older;
    }
}

static const Regions *present(const Context *c) {
    return __atomic_load_n(&c->regions, __ATOMIC_ACQUIRE);
}

/* Size 0: the region is no more. The newest come last. */
int add_region(Context *c, int peer, uint64_t number, char *address, uint64_t size) {
    Regions *old = c->regions;
    int64_t count = old ? old->count : 0;
    Regions *list = PyMem_Malloc(sizeof *list + (size_t)(count + 1) * sizeof(Region));
    if (!list) return PyErr_NoMemory(), -1;
    list->count = 0;
    for (int64_t i = 0; i < count; i++)
        if (old->items[i].peer != peer || old->items[i].number != number) list->items[list->count++] = old->items[i];
    if (size) list->items[list->count++] = (Region){peer, number, address, size};
    list->older = c->busy ? old : NULL;
    __atomic_store_n(&c->regions, list, __ATOMIC_RELEASE);
    if (!c->busy) free_regions(old);
    return 0;
}

/* The word for the board: region << 48 | offset, or NO_REGION. Newer regions first: old ones may be gone. */
uint64_t region_word(const Context *c, const char *address) {
    const Regions *list = present(c);
    for (int64_t i = list ? list->count - 1 : -1; i >= 0; i--) {
        const Region *r = &list->items[i];
        if (r->peer == c->rank && address >= r->address && (uint64_t)(address - r->address) < r->size)
            return r->number << OFFSET_BITS | (uint64_t)(address - r->address);
    }
    return NO_REGION;
}

char *region_address(const Context *c, int peer, uint64_t word) {
    uint64_t number = word >> OFFSET_BITS, offset = word & ((1ULL << OFFSET_BITS) - 1);
    const Regions *list = word == NO_REGION ? NULL : present(c);
    for (int64_t i = 0; list && i < list->count; i++) {
        const Region *r = &list->items[i];
        if (r->peer == peer && r->number == number && offset < r->size) return r->address + offset;
    }
    return NULL;
}
