/* The module: its types, the constants and layouts that tests compare with Python's, the kernels by themselves. */
#include "core.h"

#define PAIR(name) {#name, name}
static const struct {
    const char *name;
    int64_t value;
} constants[] = {
    PAIR(LINE),  PAIR(PAGE),  PAIR(VERSION), PAIR(CHANNELS),      PAIR(CALLS), PAIR(HEADER),      PAIR(ENTERED), PAIR(CORE),
    PAIR(DONE),  PAIR(BELL),  PAIR(WHERE),   PAIR(STATE), PAIR(ALARM), PAIR(STALL), PAIR(FAILURE), PAIR(FAILURE_BYTES), PAIR(BOARD),
    PAIR(BOARD_ENTRY), PAIR(BOARD_TEXT), PAIR(AFTER_BOARD), PAIR(OWN_INPUT), PAIR(OWN_OUTPUT), PAIR(OWN_SCRATCH),
    PAIR(MESSAGE_IN), PAIR(MESSAGE_OUT), PAIR(PEERS), PAIR(MOVE), PAIR(SIGNAL), PAIR(WAIT), PAIR(NOP), PAIR(NONE),
    {"MAGIC", (int64_t)MAGIC},
};

#define AT(type, field) {#type, #field, offsetof(type, field), sizeof(((type *)0)->field)}
static const struct {
    const char *type, *field;
    size_t offset, size;
} fields[] = {
    AT(Step, kind), AT(Step, index), AT(Step, receive), AT(Step, send), AT(Step, peer), AT(Step, channel),
    AT(Step, move_low), AT(Step, move_high), AT(Step, depend_low), AT(Step, depend_high), AT(Step, message),
    AT(Move, source_low), AT(Move, destination_low), AT(Move, high), AT(Move, zero), AT(Move, length),
    AT(Operand, base), AT(Operand, zero), AT(Operand, offset), AT(Operand, stride),
    AT(Depend, block), AT(Depend, steps), AT(Block, low), AT(Block, high), AT(Link, peer), AT(Link, channel),
    AT(Record, call), AT(Record, table), AT(Record, state), AT(Record, bytes), AT(Record, began), AT(Record, ended),
};

static PyObject *all_constants(void) {
    PyObject *all = PyDict_New();
    for (size_t i = 0; all && i < sizeof constants / sizeof *constants; i++) {
        PyObject *value = PyLong_FromLongLong(constants[i].value);
        if (!value || PyDict_SetItemString(all, constants[i].name, value)) Py_CLEAR(all);
        Py_XDECREF(value);
    }
    return all;
}

static PyObject *all_fields(void) {
    size_t count = sizeof fields / sizeof *fields;
    PyObject *all = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; all && i < count; i++) {
        PyObject *one = Py_BuildValue("(ssnn)", fields[i].type, fields[i].field, fields[i].offset, fields[i].size);
        if (one)
            PyTuple_SET_ITEM(all, (Py_ssize_t)i, one);
        else
            Py_CLEAR(all);
    }
    return all;
}

static PyObject *offsets(PyObject *module, PyObject *args) {
    (void)module;
    Layout l;
    long long channel, sender;
    if (!PyArg_ParseTuple(args, "LLLLLLL", &l.ranks, &l.lane, &l.slot, &l.depth, &l.ring, &channel, &sender))
        return NULL;
    return Py_BuildValue("{sL sL sL sL sL sL sL sL sL}", "signal", layout_signal(&l, channel, sender), "tail",
                         layout_tail(&l, channel, sender), "credit", layout_credit(&l, channel, sender), "ring_words",
                         layout_ring_words(&l, sender), "control_end", layout_control_end(&l), "scratch",
                         layout_scratch(&l, 1), "fifo", layout_fifo(&l, channel, sender), "ring_bytes",
                         layout_ring_bytes(&l, sender), "size", layout_ring_bytes(&l, l.ranks));
}

/* The addresses in a sequence; NULL with an exception. Free with PyMem_Free. */
static char **addresses(PyObject *given, Py_ssize_t *count) {
    PyObject *items = PySequence_Fast(given, "no sequence of addresses");
    if (!items) return NULL;
    *count = PySequence_Fast_GET_SIZE(items);
    char **all = PyMem_Calloc((size_t)*count + 1, sizeof *all);
    if (!all) PyErr_NoMemory();
    for (Py_ssize_t i = 0; all && i < *count; i++) all[i] = PyLong_AsVoidPtr(PySequence_Fast_GET_ITEM(items, i));
    Py_DECREF(items);
    if (!PyErr_Occurred()) return all;
    PyMem_Free(all);
    return NULL;
}

static PyObject *combine(PyObject *module, PyObject *args) {
    (void)module;
    const char *dtype, *name;
    PyObject *destinations, *sources;
    long long bytes;
    Py_ssize_t tos, froms;
    if (!PyArg_ParseTuple(args, "szOOL", &dtype, &name, &destinations, &sources, &bytes)) return NULL;
    char **to = addresses(destinations, &tos), **from = to ? addresses(sources, &froms) : NULL;
    Combine function = name ? find_combine(dtype, name) : NULL;
    int bad = !from;
    if (!bad && ((name && !function) || (!name && froms != 1) || froms < 1 || bytes < 0))
        bad = (PyErr_Format(PyExc_ValueError, "no kernel combines %zd sources of %s", froms, dtype), 1);
    if (!bad && froms == 1) copy_all(to, (int)tos, from[0], (size_t)bytes);
    if (!bad && froms > 1) function(to, (int)tos, (const char *const *)from, (int)froms, (size_t)bytes);
    PyMem_Free(to);
    PyMem_Free(from);
    return bad ? NULL : Py_NewRef(Py_None);
}

static PyObject *choose(PyObject *module, PyObject *args) {
    (void)module;
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|z", &name)) return NULL;
    if (name && !use_instructions(name)) return PyErr_Format(PyExc_ValueError, "no instructions %s here", name);
    if (!name) use_instructions(NULL);
    return PyUnicode_FromString(instructions());
}

static PyMethodDef methods[] = {
    {"offsets", offsets, METH_VARARGS, "offsets(ranks, lane, slot, depth, ring, channel, sender) -> where words lie"},
    {"combine", combine, METH_VARARGS, "combine(dtype, combine, destinations, sources, bytes): one move by addresses"},
    {"use_instructions", choose, METH_VARARGS,
     "use_instructions(name=None) -> the name of the kernels that new tables take: avx512, avx2, generic; None: best"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_core", "The native core: the step loop over shared memory, and its kernels.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__core(void) {
    PyTypeObject *types[] = {&ContextType, &TableType, &PlannedType, &ReplayType};
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    use_instructions(NULL);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(module, types[i])) return Py_DECREF(module), NULL;
    if (PyModule_AddObject(module, "CONSTANTS", all_constants()) || PyModule_AddObject(module, "FIELDS", all_fields()))
        return Py_DECREF(module), NULL;
    return module;
}
