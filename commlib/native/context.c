/* Context and Planned as Python sees them. */
#include "core.h"

#include <sched.h>
#include <structmember.h>
#include <unistd.h>

static int bad_peer(const Context *c, int peer) {
    if (0 <= peer && peer < c->ranks && peer != c->rank) return 0;
    PyErr_Format(PyExc_ValueError, "rank %d has no peer %d", c->rank, peer);
    return 1;
}

static int is_closed(const Context *c) {
    if (c->closed) PyErr_SetObject(c->refused_error, c->why);
    return c->closed;
}

/* What the board says of where a tensor is. */
static uint64_t word_of(const Context *c, const Table *t, const char *address) {
    if (t->reach == 1) return region_word(c, address);
    return t->reach == 2 ? (uint64_t)(uintptr_t)address : 0;
}

static int read_layout(Layout *l, PyObject *layout) {
    static const char *const names[] = {"ranks", "lane", "slot", "depth", "ring"};
    int64_t *const fields[] = {&l->ranks, &l->lane, &l->slot, &l->depth, &l->ring};
    for (int i = 0; i < 5; i++) {
        PyObject *value = PyObject_GetAttrString(layout, names[i]);
        if (!value) return -1;
        *fields[i] = PyLong_AsLongLong(value);
        Py_DECREF(value);
        if (*fields[i] == -1 && PyErr_Occurred()) return -1;
    }
    const int64_t most = (int64_t)1 << 40; /* so that no sum of products below overflows */
    if (l->ranks > 0 && l->lane >= 0 && l->slot >= 0 && l->depth > 0 && l->ring > 0 && l->ranks <= 1 << 16 &&
        l->lane <= most && l->ring <= most && l->slot <= most / l->depth)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a layout has positive ranks, depth and ring, and no negative or huge lane or slot");
    return -1;
}

static void *zeros(size_t count, size_t size) {
    void *memory = PyMem_Calloc(count + 1, size);
    if (!memory) PyErr_NoMemory();
    return memory;
}

static int make_arrays(Context *c) {
    size_t ranks = (size_t)c->ranks, pairs = ranks * CHANNELS, word = sizeof(uint64_t);
    uint64_t **const counters[] = {&c->signalled, &c->waited, &c->posted, &c->taken, &c->room};
    for (int i = 0; i < 5; i++)
        if (!(*counters[i] = zeros(pairs, word))) return -1;
    uint64_t **const peers[] = {&c->checked, &c->done, &c->ring_in, &c->ring_out};
    for (int i = 0; i < 4; i++)
        if (!(*peers[i] = zeros(ranks, word))) return -1;
    for (int lane = 0; lane < 2; lane++)
        if (!(c->bases[lane] = zeros(PEERS + 3 * ranks, sizeof(char *)))) return -1;
    if (!(c->segments = zeros(ranks, sizeof(char *))) || !(c->to_ring = zeros(ranks, sizeof(int32_t)))) return -1;
    if (!(c->rings = zeros(ranks, 1)) || !(c->records = zeros((size_t)c->n_records, sizeof(Record)))) return -1;
    for (int i = 0; i < CALLS; i++) c->texts[i] = NONE;
    return 0;
}

static int set_segments(Context *c, PyObject *given) {
    PyObject *items = PySequence_Fast(given, "segments is no sequence of addresses");
    if (!items) return -1;
    int bad = PySequence_Fast_GET_SIZE(items) != c->ranks;
    if (bad) PyErr_SetString(PyExc_ValueError, "segments are not as many as ranks");
    for (int p = 0; !bad && p < c->ranks; p++) {
        c->segments[p] = PyLong_AsVoidPtr(PySequence_Fast_GET_ITEM(items, p));
        bad = !c->segments[p];
        if (bad && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "the segment of rank %d has no address", p);
        for (int lane = 0; !bad && lane < 2; lane++)
            c->bases[lane][PEERS + 3 * p + 2] = c->segments[p] + layout_scratch(&c->layout, lane);
    }
    for (int lane = 0; !bad && lane < 2; lane++)
        c->bases[lane][OWN_SCRATCH] = c->bases[lane][PEERS + 3 * c->rank + 2];
    Py_DECREF(items);
    return bad ? -1 : 0;
}

/* The cores that this process may use. */
static int cores(void) {
#ifdef CPU_COUNT
    cpu_set_t allowed;
    if (!sched_getaffinity(0, sizeof allowed, &allowed)) return CPU_COUNT(&allowed);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* A new reference to a class of a module. */
static PyObject *class_of(const char *name, const char *attribute) {
    PyObject *module = PyImport_ImportModule(name), *found = module ? PyObject_GetAttrString(module, attribute) : NULL;
    Py_XDECREF(module);
    return found;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"rank",          "ranks",    "layout",  "segments",    "spins", "yields",
                            "slice_seconds", "on_stall", "records", "on_mismatch", NULL};
    int rank, ranks, spins, yields;
    long long records;
    double slice;
    PyObject *layout, *segments, *on_stall, *on_mismatch = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iiOOiidOL|O", names, &rank, &ranks, &layout, &segments, &spins,
                                     &yields, &slice, &on_stall, &records, &on_mismatch))
        return NULL;
    if (rank < 0 || rank >= ranks || !(slice > 0) || slice > 1e6 || records < 0 || records > 1 << 24)
        return PyErr_SetString(PyExc_ValueError, "rank, slice or records out of range"), NULL;
    Context *c = (Context *)type->tp_alloc(type, 0);
    if (!c) return NULL;
    static uint64_t serial;
    c->serial = ++serial;
    c->rank = rank, c->ranks = ranks, c->spins = spins, c->yields = yields;
    c->slice_ns = (int64_t)(slice * 1e9) + 1;
    c->n_records = records;
    c->synchronized = 1;
    c->roomy = ranks <= cores();
    c->on_stall = Py_NewRef(on_stall), c->on_mismatch = Py_NewRef(on_mismatch);
    c->on_error = Py_NewRef(Py_None), c->trace = Py_NewRef(Py_None);
    c->spec_error = class_of("commlib.errors", "SpecError");
    c->refused_error = c->spec_error ? class_of("commlib.runtime.shm.interface", "RefusedError") : NULL;
    int bad = !c->refused_error || read_layout(&c->layout, layout) || make_arrays(c) || set_segments(c, segments);
    if (!bad && c->layout.ranks != ranks)
        bad = (PyErr_SetString(PyExc_ValueError, "the layout is for another number of ranks"), 1);
    if (bad) Py_CLEAR(c);
    return (PyObject *)c;
}

static int context_traverse(Context *c, visitproc visit, void *arg) {
    Py_VISIT(c->on_stall);
    Py_VISIT(c->on_mismatch);
    Py_VISIT(c->on_error);
    Py_VISIT(c->trace);
    return 0;
}

static int context_clear(Context *c) {
    PyObject **const held[] = {&c->on_stall, &c->on_mismatch, &c->on_error, &c->trace};
    for (int i = 0; i < 4; i++) {
        PyObject *old = *held[i];
        *held[i] = Py_NewRef(Py_None);
        Py_XDECREF(old);
    }
    return 0;
}

static void context_free(Context *c) {
    PyObject_GC_UnTrack(c);
    void *arrays[] = {c->signalled, c->waited,   c->posted,   c->taken,    c->room,    c->checked, c->done,   c->ring_in,
                      c->ring_out,  c->bases[0], c->bases[1], c->segments, c->to_ring, c->rings,   c->records};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) PyMem_Free(arrays[i]);
    free_regions(c->regions);
    PyMem_RawFree(c->staging);
    Py_XDECREF(c->on_stall);
    Py_XDECREF(c->on_mismatch);
    Py_XDECREF(c->on_error);
    Py_XDECREF(c->trace);
    Py_XDECREF(c->spec_error);
    Py_XDECREF(c->refused_error);
    Py_XDECREF(c->why);
    Py_TYPE(c)->tp_free((PyObject *)c);
}

static PyObject *context_table(Context *c, PyObject *args, PyObject *keywords) {
    static char *names[] = {"rank_table", "fingerprint", "text", "reach", NULL};
    PyObject *rank_table, *fingerprint, *text;
    int reach;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO!Si", names, &rank_table, &PyLong_Type, &fingerprint, &text,
                                     &reach))
        return NULL;
    if (reach < 0 || reach > 2) return PyErr_SetString(PyExc_ValueError, "reach is 0, 1 or 2"), NULL;
    uint64_t print = PyLong_AsUnsignedLongLong(fingerprint);
    if (print == UINT64_MAX && PyErr_Occurred()) return NULL;
    return (PyObject *)table_new(c, rank_table, print, text, reach);
}

static int is_table(PyObject *given) {
    if (PyObject_TypeCheck(given, &TableType)) return 1;
    PyErr_SetString(PyExc_TypeError, "this is no table that Context.table has made");
    return 0;
}

static PyObject *context_run(Context *c, PyObject *const *args, Py_ssize_t count) {
    if (count != 4) return PyErr_SetString(PyExc_TypeError, "run(table, input_address, output_address, timeout)"), NULL;
    if (!is_table(args[0])) return NULL;
    char *input = PyLong_AsVoidPtr(args[1]), *output = PyLong_AsVoidPtr(args[2]);
    double timeout = PyFloat_AsDouble(args[3]);
    if (PyErr_Occurred()) return NULL;
    Table *t = (Table *)args[0];
    if (!c->busy) c->timeout = timeout;
    Py_INCREF(t);
    int bad = run_call(c, t, input, output, word_of(c, t, input), word_of(c, t, output));
    Py_DECREF(t);
    return bad ? NULL : Py_NewRef(Py_None);
}

static PyObject *planned_call(PyObject *self, PyObject *const *args, size_t flags, PyObject *names) {
    (void)args;
    if (PyVectorcall_NARGS(flags) || (names && PyTuple_GET_SIZE(names)))
        return PyErr_SetString(PyExc_TypeError, "a planned call takes no arguments"), NULL;
    Planned *p = (Planned *)self;
    if (!p->context->busy && p->timeout >= 0) p->context->timeout = p->timeout;
    int bad = run_call(p->context, p->table, p->input, p->output, p->input_word, p->output_word);
    return bad ? NULL : Py_NewRef(Py_None);
}

static PyObject *context_planned(Context *c, PyObject *args, PyObject *keywords) {
    static char *names[] = {"table", "input_address", "output_address", "timeout", NULL};
    PyObject *table, *input, *output, *given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OO|O", names, &TableType, &table, &input, &output, &given))
        return NULL;
    double timeout = given == Py_None ? -1 : PyFloat_AsDouble(given);
    char *in = PyLong_AsVoidPtr(input), *out = PyLong_AsVoidPtr(output);
    if (PyErr_Occurred()) return NULL;
    Planned *p = PyObject_GC_New(Planned, &PlannedType);
    if (!p) return NULL;
    p->vectorcall = planned_call;
    p->context = (Context *)Py_NewRef((PyObject *)c);
    p->table = (Table *)Py_NewRef(table);
    p->input = in, p->output = out;
    p->input_word = word_of(c, p->table, in), p->output_word = word_of(c, p->table, out);
    p->timeout = timeout;
    PyObject_GC_Track(p);
    return (PyObject *)p;
}

static int planned_traverse(Planned *p, visitproc visit, void *arg) {
    Py_VISIT(p->context);
    Py_VISIT(p->table);
    return 0;
}

static void planned_free(Planned *p) {
    PyObject_GC_UnTrack(p);
    Py_XDECREF(p->context);
    Py_XDECREF(p->table);
    PyObject_GC_Del(p);
}

static PyObject *context_region(Context *c, PyObject *args) {
    int peer;
    unsigned long long number, size;
    PyObject *address;
    if (!PyArg_ParseTuple(args, "iKOK", &peer, &number, &address, &size)) return NULL;
    char *start = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return NULL;
    if (peer < 0 || peer >= c->ranks || number >= 0xFFFF || size >> 48)
        return PyErr_SetString(PyExc_ValueError, "the region's rank, number or size is out of range"), NULL;
    return add_region(c, peer, number, start, size) ? NULL : Py_NewRef(Py_None);
}

static PyObject *context_records(Context *c, PyObject *unused) {
    (void)unused;
    uint64_t held = (uint64_t)c->n_records, first = 0, size = sizeof(Record);
    if (!held) return PyBytes_FromStringAndSize(NULL, 0);
    if (c->recorded > held) first = c->recorded % held;
    else held = c->recorded;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(held * size));
    if (!bytes) return NULL;
    char *to = PyBytes_AS_STRING(bytes);
    memcpy(to, c->records + first, (held - first) * size);
    memcpy(to + (held - first) * size, c->records, first * size);
    return bytes;
}

typedef int64_t (*RingCopy)(Context *c, int peer, char *memory, int64_t bytes);

static PyObject *ring_copy(Context *c, PyObject *args, RingCopy function) {
    int peer;
    PyObject *address;
    long long bytes;
    enum { LONG_COPY = 65536 };
    if (!PyArg_ParseTuple(args, "iOL", &peer, &address, &bytes)) return NULL;
    char *memory = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred() || bad_peer(c, peer) || is_closed(c)) return NULL;
    int64_t moved;
    if (bytes <= LONG_COPY) {
        moved = function(c, peer, memory, bytes);
    } else {
        Py_BEGIN_ALLOW_THREADS
        moved = function(c, peer, memory, bytes);
        Py_END_ALLOW_THREADS
    }
    return PyLong_FromLongLong(moved);
}

static int64_t write_ring(Context *c, int peer, char *memory, int64_t bytes) {
    return ring_write(c, peer, memory, bytes);
}

static PyObject *context_ring_write(Context *c, PyObject *args) {
    return ring_copy(c, args, write_ring);
}

static PyObject *context_ring_read(Context *c, PyObject *args) {
    return ring_copy(c, args, ring_read);
}

static PyObject *context_wait_rings(Context *c, PyObject *timeout) {
    double seconds = PyFloat_AsDouble(timeout);
    if (PyErr_Occurred() || is_closed(c)) return NULL;
    int changed;
    Py_BEGIN_ALLOW_THREADS
    changed = wait_rings(c, seconds > 0 ? seconds : 0);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() ? NULL : PyBool_FromLong(changed);
}

static PyObject *context_close(Context *c, PyObject *args) {
    PyObject *why = NULL;
    if (!PyArg_ParseTuple(args, "|U", &why)) return NULL;
    if (!c->why) c->why = why ? Py_NewRef(why) : PyUnicode_FromString("the context is closed");
    if (!c->why) return NULL;
    c->closed = 1;
    Py_RETURN_NONE;
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS
static PyMethodDef context_methods[] = {
    {"table", WITH_KEYWORDS(context_table), "table(rank_table, fingerprint, text, reach) -> Table"},
    {"run", (PyCFunction)(void (*)(void))context_run, METH_FASTCALL,
     "run(table, input_address, output_address, timeout): one call; returns when this rank's part is done"},
    {"planned", WITH_KEYWORDS(context_planned), "planned(table, input_address, output_address, timeout=None) -> callable"},
    {"region", (PyCFunction)context_region, METH_VARARGS, "region(peer, number, address, size): as mapped here; size 0: no more"},
    {"records", (PyCFunction)context_records, METH_NOARGS, "The flight ring, oldest record first."},
    {"ring_write", (PyCFunction)context_ring_write, METH_VARARGS, "ring_write(peer, address, bytes) -> bytes written"},
    {"ring_read", (PyCFunction)context_ring_read, METH_VARARGS, "ring_read(peer, address, bytes) -> bytes read"},
    {"wait_rings", (PyCFunction)context_wait_rings, METH_O, "wait_rings(timeout): until a ring has changed"},
    {"close", (PyCFunction)context_close, METH_VARARGS, "close(why=...): no call touches the segments any more"},
    {NULL, NULL, 0, NULL},
};

#define FIELD(name, kind, mode, doc) {#name, kind, offsetof(Context, name), mode, doc}
static PyMemberDef context_members[] = {
    FIELD(on_stall, T_OBJECT, 0, "Called with (seconds, waits) each slice while nothing moves; raises to end the call."),
    FIELD(on_mismatch, T_OBJECT, 0, "Called with the peer whose call is another; raises."),
    FIELD(on_error, T_OBJECT, 0, "None, or called with the exception that ends a call that has begun."),
    FIELD(trace, T_OBJECT, 0, "None, or called with (threadblock, step, tile) when a step is first tried."),
    FIELD(timeout, T_DOUBLE, 0, "Seconds that the present call was given."),
    FIELD(calls, T_ULONGLONG, READONLY, "Calls begun."),
    FIELD(epochs, T_ULONGLONG, READONLY, "Epochs begun."),
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject ContextType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "commlib.native._core.Context",
    .tp_basicsize = sizeof(Context),
    .tp_new = context_new,
    .tp_dealloc = (destructor)context_free,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = (traverseproc)context_traverse,
    .tp_clear = (inquiry)context_clear,
    .tp_methods = context_methods,
    .tp_members = context_members,
    .tp_doc = "One rank's place in a group over shared memory: runs tables, streams bytes through rings.",
};

PyTypeObject PlannedType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "commlib.native._core.Planned",
    .tp_basicsize = sizeof(Planned),
    .tp_dealloc = (destructor)planned_free,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_traverse = (traverseproc)planned_traverse,
    .tp_vectorcall_offset = offsetof(Planned, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_doc = "A call with its table and tensors, ready to be made again and again without arguments.",
};
