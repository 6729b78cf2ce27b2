/* Tables: read from RankTable's arrays, and checked, so that the step loop cannot leave the memory it was given. */
#include "core.h"

#include <stdio.h>

enum { DEFAULT_CACHE = 32 << 20 };

/* A copy of attribute `name` of the RankTable, `count` records of `size` bytes; NULL with an exception. */
static void *copied(PyObject *rank_table, const char *name, size_t size, int64_t *count) {
    PyObject *array = PyObject_GetAttrString(rank_table, name);
    if (!array) return NULL;
    Py_buffer view;
    int got = PyObject_GetBuffer(array, &view, PyBUF_SIMPLE);
    Py_DECREF(array);
    if (got < 0) return NULL;
    void *copy = NULL;
    if (view.len % (Py_ssize_t)size)
        PyErr_Format(PyExc_ValueError, "%s is %zd bytes long, no multiple of a record's %zu", name, view.len, size);
    else if (!(copy = PyMem_Malloc(view.len ? (size_t)view.len : 1)))
        PyErr_NoMemory();
    else
        memcpy(copy, view.buf, (size_t)view.len);
    *count = view.len / (Py_ssize_t)size;
    PyBuffer_Release(&view);
    return copy;
}

static int number_of(PyObject *rank_table, const char *name, int64_t *value) {
    PyObject *attribute = PyObject_GetAttrString(rank_table, name);
    if (!attribute) return -1;
    *value = PyLong_AsLongLong(attribute);
    Py_DECREF(attribute);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_combine(Table *t, PyObject *rank_table) {
    PyObject *dtype = PyObject_GetAttrString(rank_table, "dtype");
    PyObject *combine = dtype ? PyObject_GetAttrString(rank_table, "combine") : NULL;
    int bad = !combine;
    if (combine && combine != Py_None) {
        const char *d = PyUnicode_AsUTF8(dtype), *c = PyUnicode_AsUTF8(combine);
        bad = !d || !c;
        if (!bad && !(t->combine = find_combine(d, c))) {
            PyErr_Format(PyExc_ValueError, "%U is not defined on elements of %U", combine, dtype);
            bad = 1;
        }
    }
    Py_XDECREF(dtype);
    Py_XDECREF(combine);
    return bad ? -1 : 0;
}

static int read_threadblocks(Table *t, PyObject *rank_table) {
    PyObject *given = PyObject_GetAttrString(rank_table, "threadblocks");
    PyObject *items = given ? PySequence_Fast(given, "threadblocks is no sequence") : NULL;
    Py_XDECREF(given);
    if (!items) return -1;
    int bad = PySequence_Fast_GET_SIZE(items) != t->blocks;
    if (bad) PyErr_SetString(PyExc_ValueError, "threadblocks are not as many as blocks");
    t->threadblocks = PyMem_Calloc((size_t)t->blocks + 1, sizeof *t->threadblocks);
    for (int b = 0; !bad && b < t->blocks; b++) {
        t->threadblocks[b] = (int32_t)PyLong_AsLong(PySequence_Fast_GET_ITEM(items, b));
        bad = t->threadblocks[b] == -1 && PyErr_Occurred();
    }
    Py_DECREF(items);
    return bad ? -1 : 0;
}

static int read_arrays(Table *t, PyObject *r) {
    int64_t blocks;
    if (!(t->steps = copied(r, "steps", sizeof *t->steps, &t->n_steps))) return -1;
    if (!(t->moves = copied(r, "moves", sizeof *t->moves, &t->n_moves))) return -1;
    if (!(t->operands = copied(r, "operands", sizeof *t->operands, &t->n_operands))) return -1;
    if (!(t->depends = copied(r, "depends", sizeof *t->depends, &t->n_depends))) return -1;
    if (!(t->block = copied(r, "blocks", sizeof *t->block, &blocks))) return -1;
    if (!(t->sends = copied(r, "sends", sizeof *t->sends, &t->n_sends))) return -1;
    if (!(t->receives = copied(r, "receives", sizeof *t->receives, &t->n_receives))) return -1;
    t->blocks = (int32_t)blocks;
    t->cursors = PyMem_Calloc((size_t)blocks + 1, sizeof *t->cursors);
    t->remote = PyMem_Calloc((size_t)t->n_moves + 1, 1);
    t->outputs = PyMem_Calloc((size_t)t->n_moves + 1, 1);
    t->addresses = PyMem_Calloc((size_t)t->n_operands + 1, sizeof *t->addresses);
    if (t->cursors && t->remote && t->outputs && t->addresses) return 0;
    PyErr_NoMemory();
    return -1;
}

static int read_numbers(Table *t, PyObject *rank_table) {
    int64_t synchronizing, rank, ranks;
    const Context *c = t->context;
    if (number_of(rank_table, "width", &t->width) || number_of(rank_table, "tiles", &t->tiles) ||
        number_of(rank_table, "itemsize", &t->itemsize) || number_of(rank_table, "rank", &rank) ||
        number_of(rank_table, "ranks", &ranks) || number_of(rank_table, "synchronizing", &synchronizing))
        return -1;
    t->synchronizing = synchronizing != 0;
    if (rank == c->rank && ranks == c->ranks && t->width >= 0 && t->tiles >= 0 && t->tiles <= INT32_MAX &&
        t->itemsize > 0 && t->itemsize <= 16)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the table is of another rank or group, or its numbers are out of range");
    return -1;
}

static int within(int64_t low, int64_t high, int64_t count) {
    return 0 <= low && low <= high && high <= count;
}

static int is_peer(const Context *c, int64_t peer) {
    return 0 <= peer && peer < c->ranks && peer != c->rank;
}

/* The elements that a move moves at most in one tile. */
static int64_t most(const Table *t, const Move *m) {
    return t->tiles > 1 && m->length > t->width ? t->width : m->length;
}

static int operand_fits(const Table *t, const Step *s, const Operand *o, int64_t elements, int is_source) {
    const Context *c = t->context;
    int64_t room = INT64_MAX, end;
    int scratch = o->base == OWN_SCRATCH || (o->base >= PEERS && (o->base - PEERS) % 3 == 2);
    int message = o->base == MESSAGE_IN || o->base == MESSAGE_OUT;
    if (o->base < 0 || o->base >= PEERS + 3 * c->ranks || (o->base > MESSAGE_OUT && o->base < PEERS)) return 0;
    if (message && (o->base == MESSAGE_IN ? s->receive : s->send) < 0) return 0;
    if (o->base == MESSAGE_IN && !is_source) return 0;
    if (t->reach == 2 && !is_source && o->base >= PEERS && !scratch && o->base < PEERS + 3 * c->ranks)
        return (o->base - PEERS) / 3 == c->rank;
    if (scratch) room = c->layout.lane;
    if (message) room = c->layout.slot;
    int far = __builtin_mul_overflow(t->tiles - 1, o->stride, &end) || __builtin_add_overflow(end, o->offset, &end) ||
              __builtin_add_overflow(end, elements * t->itemsize, &end);
    return !far && o->offset >= 0 && o->stride >= 0 && end <= room;
}

static void note_extent(Table *t, const Operand *o, int64_t length) {
    int64_t *extent = o->base == OWN_INPUT ? &t->input_extent : &t->output_extent, end;
    if (__builtin_add_overflow(o->offset, length * t->itemsize, &end)) end = INT64_MAX;
    if ((o->base == OWN_INPUT || o->base == OWN_OUTPUT) && *extent < end) *extent = end;
}

static int move_fits(Table *t, const Step *s, const Move *m) {
    const Context *c = t->context;
    if (!within(m->source_low, m->destination_low, t->n_operands) || m->high < m->destination_low) return 0;
    int64_t from = m->destination_low - m->source_low, elements = most(t, m);
    if (m->high > t->n_operands || from < 1 || m->length < 0 || m->length > INT64_MAX / 64) return 0;
    if (from > 1 && !t->combine) return 0;
    for (int64_t i = m->source_low; i < m->high; i++) {
        const Operand *o = &t->operands[i];
        if (!operand_fits(t, s, o, elements, i < m->destination_low)) return 0;
        int tensor = o->base >= PEERS && (o->base - PEERS) % 3 != 2 && (o->base - PEERS) / 3 != c->rank;
        if (tensor && !t->reach) return 0;
        if (tensor && i < m->destination_low) t->remote[m - t->moves] = 1;
        note_extent(t, o, m->length);
        if (o->base == OWN_OUTPUT && i >= m->destination_low) t->outputs[m - t->moves] = 1;
    }
    t->work += (uint64_t)(elements * t->itemsize * (m->high - m->source_low));
    t->bytes += (uint64_t)(m->length * t->itemsize * (m->high - m->destination_low));
    return 1;
}

static int step_fits(Table *t, const Step *s) {
    const Context *c = t->context;
    if (s->kind < MOVE || s->kind > NOP) return 0;
    if (s->receive < NONE || s->receive >= t->n_receives || s->send < NONE || s->send >= t->n_sends) return 0;
    if ((s->receive >= 0 || s->send >= 0) && (s->message < 0 || s->message > c->layout.slot)) return 0;
    if ((s->kind == SIGNAL || s->kind == WAIT) &&
        (!is_peer(c, s->peer) || s->channel < 0 || s->channel >= CHANNELS))
        return 0;
    if (!within(s->depend_low, s->depend_high, t->n_depends)) return 0;
    for (int64_t d = s->depend_low; d < s->depend_high; d++) {
        const Depend *p = &t->depends[d];
        if (p->block < 0 || p->block >= t->blocks) return 0;
        if (p->steps < 0 || p->steps > t->block[p->block].high - t->block[p->block].low) return 0;
    }
    if (!within(s->move_low, s->move_high, t->n_moves)) return 0;
    for (int64_t m = s->move_low; m < s->move_high; m++)
        if (!move_fits(t, s, &t->moves[m])) return 0;
    return 1;
}

static int links_fit(const Table *t, const Link *links, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!is_peer(t->context, links[i].peer) || links[i].channel < 0 || links[i].channel >= CHANNELS)
            return 0;
    return 1;
}

static int check(Table *t) {
    int good = links_fit(t, t->sends, t->n_sends) && links_fit(t, t->receives, t->n_receives);
    if (!good) return PyErr_SetString(PyExc_ValueError, "a link's peer or channel is out of range"), -1;
    for (int b = 0; b < t->blocks; b++)
        if (!within(t->block[b].low, t->block[b].high, t->n_steps))
            return PyErr_Format(PyExc_ValueError, "block %d has steps out of range", b), -1;
    for (int64_t i = 0; i < t->n_steps; i++)
        if (!step_fits(t, &t->steps[i]))
            return PyErr_Format(PyExc_ValueError, "step row %lld of the table is out of range", (long long)i), -1;
    return 0;
}

/* Bytes of the last cache as the system has it; sysconf multiplies it on some machines. */
static uint64_t last_cache(void) {
    static uint64_t known;
    unsigned long long kilobytes = 0;
    FILE *file = known ? NULL : fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    if (file) {
        if (fscanf(file, "%lluK", &kilobytes) != 1) kilobytes = 0;
        fclose(file);
    }
    if (!known) known = kilobytes ? kilobytes << 10 : DEFAULT_CACHE;
    return known;
}

/* Outputs are written past the last cache if the tensors of all ranks fill it: they could not stay there. (Measured on
 * 2 cores with 32 MB: an alltoall of 16 MB on 2 ranks takes 1.1 ms, and 1.7 to 2.1 through the cache; of 4 MB on 8, 1.4
 * and 2.0; a broadcast of 4 MB on 8 the same.) */
static void choose_stream(Table *t) {
    uint64_t bytes = (uint64_t)(t->input_extent + t->output_extent) * (uint64_t)t->context->ranks;
    int writes = 0;
    for (int64_t m = 0; m < t->n_moves; m++) writes |= t->outputs[m];
    if (writes && bytes >= last_cache()) t->stream = find_stream();
}

/* The bases of other ranks' tensors, which each call must find anew. */
static int note_tensors(Table *t) {
    const Context *c = t->context;
    uint8_t *seen = PyMem_Calloc((size_t)(PEERS + 3 * c->ranks), 1);
    t->tensors = PyMem_Calloc((size_t)(2 * c->ranks + 1), sizeof *t->tensors);
    if (!seen || !t->tensors) return PyMem_Free(seen), PyErr_NoMemory(), -1;
    for (int64_t i = 0; i < t->n_operands; i++) {
        int base = t->operands[i].base, peer = (base - PEERS) / 3;
        if (base < PEERS || base >= PEERS + 3 * c->ranks) continue; /* of no move */
        if ((base - PEERS) % 3 == 2 || peer == c->rank || seen[base]++) continue;
        t->tensors[t->foreign++] = base;
    }
    PyMem_Free(seen);
    return 0;
}

Table *table_new(Context *context, PyObject *rank_table, uint64_t fingerprint, PyObject *text, int reach) {
    Table *t = PyObject_New(Table, &TableType);
    if (!t) return NULL;
    memset((char *)t + sizeof(PyObject), 0, sizeof *t - sizeof(PyObject));
    t->context = context;
    t->owner = context->serial;
    t->number = context->tables;
    t->fingerprint = fingerprint;
    t->reach = reach;
    size_t length = (size_t)PyBytes_GET_SIZE(text);
    memcpy(t->text, PyBytes_AS_STRING(text), length < BOARD_TEXT ? length : BOARD_TEXT - 1);
    if (read_numbers(t, rank_table) || read_combine(t, rank_table) || read_arrays(t, rank_table) ||
        read_threadblocks(t, rank_table) || check(t) || note_tensors(t)) {
        Py_DECREF(t);
        return NULL;
    }
    choose_stream(t);
    context->tables++;
    t->context = NULL;
    return t;
}

static void table_free(Table *t) {
    void *parts[] = {t->steps, t->moves,        t->operands, t->depends, t->block,  t->sends,
                     t->receives, t->threadblocks, t->tensors,  t->remote,  t->cursors,
                     t->addresses, t->outputs};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) PyMem_Free(parts[i]);
    PyObject_Free(t);
}

static PyObject *table_number(Table *t, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(t->number);
}

static PyGetSetDef table_fields[] = {
    {"number", (getter)table_number, NULL, "The table's number in its context, counted from 0.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject TableType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "commlib.native._core.Table",
    .tp_basicsize = sizeof(Table),
    .tp_dealloc = (destructor)table_free,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = table_fields,
    .tp_doc = "One rank's launch, checked and ready to run; made by Context.table.",
};
