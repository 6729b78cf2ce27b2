/* Calls through torch that were made before: found by what their tensors and options say, and made again. This is
 * `Replay` of commlib/torch_backend/replay.py in C; torch is asked through Python, by the same methods.
 *
 * In Python the same takes 1.4 us of the 3.3 us of a call of torch.distributed on two ranks; here 0.6 us. */
#include "core.h"

#include <structmember.h>

enum { HOT, WORKER, ACQUIRE, RELEASE, PROFILING, REFUSED, CONVERTED, HELD };

typedef struct {
    PyObject_HEAD
    PyObject *held[HELD];
    unsigned long long calls;
} Replay;

enum { ONE_KEY = 4, TWO_KEY = 8 };

static struct {
    PyObject *data_ptr, *numel, *dtype, *is_contiguous, *is_neg, *asyncOp, *reduceOp, *submitted, *ended;
} names;

static int make_names(void) {
    struct {
        PyObject **place;
        const char *text;
    } all[] = {{&names.data_ptr, "data_ptr"}, {&names.numel, "numel"},       {&names.dtype, "dtype"},
               {&names.is_neg, "is_neg"},     {&names.asyncOp, "asyncOp"},   {&names.is_contiguous, "is_contiguous"},
               {&names.reduceOp, "reduceOp"}, {&names.submitted, "submitted"}, {&names.ended, "ended"}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!*all[i].place && !(*all[i].place = PyUnicode_InternFromString(all[i].text))) return -1;
    return 0;
}

static PyObject *ask(PyObject *object, PyObject *method) {
    return PyObject_VectorcallMethod(method, &object, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
}

/* The truth of an answer, which is taken; -1 with an exception. */
static int truth(PyObject *answer) {
    int true_ = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return true_;
}

/* Whether a tensor is its memory, as it lies. */
static int is_plain(PyObject *tensor) {
    int contiguous = truth(ask(tensor, names.is_contiguous));
    if (contiguous <= 0) return contiguous;
    int negative = truth(ask(tensor, names.is_neg));
    return negative < 0 ? -1 : !negative;
}

static PyObject *hash_of_option(PyObject *options, PyObject *name) {
    PyObject *value = PyObject_GetAttr(options, name);
    Py_hash_t hash = value ? PyObject_Hash(value) : -1;
    Py_XDECREF(value);
    return hash == -1 ? NULL : PyLong_FromSsize_t(hash);
}

/* The parts, which are taken, as a key; NULL with an exception if one is missing. */
static PyObject *key_of(PyObject **parts, Py_ssize_t count) {
    int whole = 1;
    for (Py_ssize_t i = 0; i < count; i++) whole &= parts[i] != NULL;
    PyObject *key = whole ? PyTuple_New(count) : NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        if (key) PyTuple_SET_ITEM(key, i, parts[i]);
        else Py_XDECREF(parts[i]);
    return key;
}

static PyObject *key_of_one(PyObject *tensor, PyObject *options) {
    PyObject *parts[ONE_KEY] = {ask(tensor, names.data_ptr), NULL, NULL, NULL};
    if (parts[0]) parts[1] = ask(tensor, names.numel);
    if (parts[1]) parts[2] = PyObject_GetAttr(tensor, names.dtype);
    if (parts[2]) parts[3] = hash_of_option(options, names.reduceOp);
    return key_of(parts, ONE_KEY);
}

static PyObject *key_of_two(PyObject *const *given) {
    PyObject *kind = given[0], *output = given[1], *input = given[2], *options = given[3], *detail = given[4];
    PyObject *parts[TWO_KEY] = {Py_NewRef(kind)};
    parts[1] = detail == Py_None ? PyLong_FromLong(0) : hash_of_option(options, detail);
    if (parts[1]) parts[2] = ask(output, names.data_ptr);
    if (parts[2]) parts[3] = ask(input, names.data_ptr);
    if (parts[3]) parts[4] = ask(output, names.numel);
    if (parts[4]) parts[5] = ask(input, names.numel);
    if (parts[5]) parts[6] = PyObject_GetAttr(output, names.dtype);
    if (parts[6]) parts[7] = PyObject_GetAttr(input, names.dtype);
    return key_of(parts, TWO_KEY);
}

/* The remembered call of a key, which is taken, if the caller waits for it; NULL, perhaps with an exception. */
static PyObject *find(Replay *self, PyObject *key, PyObject *options) {
    PyObject *call = key ? PyDict_GetItemWithError(self->held[HOT], key) : NULL;
    Py_XINCREF(call);
    Py_XDECREF(key);
    if (call && truth(PyObject_GetAttr(options, names.asyncOp))) Py_CLEAR(call);
    return call;
}

/* 1: nothing is queued. */
static int is_idle(PyObject *worker) {
    PyObject *submitted = PyObject_GetAttr(worker, names.submitted);
    PyObject *ended = submitted ? PyObject_GetAttr(worker, names.ended) : NULL;
    int idle = ended ? PyObject_RichCompareBool(submitted, ended, Py_EQ) : -1;
    Py_XDECREF(submitted);
    Py_XDECREF(ended);
    return idle;
}

/* 1: this call holds the lock. */
static int begin(Replay *self) {
    int idle = is_idle(self->held[WORKER]);
    if (idle <= 0) return idle;
    int watched = truth(PyObject_CallNoArgs(self->held[PROFILING]));
    if (watched) return watched < 0 ? -1 : 0;
    return truth(PyObject_CallOneArg(self->held[ACQUIRE], Py_False));
}

/* After a call that raised: NULL, or False if it was refused, and nothing is remembered any more. */
static PyObject *failed(Replay *self) {
    if (PyErr_ExceptionMatches(self->held[REFUSED])) {
        PyErr_Clear();
        PyDict_Clear(self->held[HOT]);
        Py_RETURN_FALSE;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback) PyException_SetTraceback(value, traceback);
    PyObject *converted = PyObject_CallOneArg(self->held[CONVERTED], value);
    if (converted) PyErr_SetObject((PyObject *)Py_TYPE(converted), converted);
    Py_XDECREF(converted);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return NULL;
}

/* The lock is given back whatever the call ended with. */
static int end(Replay *self) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *answer = PyObject_CallNoArgs(self->held[RELEASE]);
    if (!answer) return Py_XDECREF(type), Py_XDECREF(value), Py_XDECREF(traceback), -1;
    Py_DECREF(answer);
    PyErr_Restore(type, value, traceback);
    return 0;
}

static PyObject *replay_again(Replay *self, PyObject *call) {
    int begun = begin(self);
    if (begun <= 0) return begun < 0 ? NULL : Py_NewRef(Py_False);
    PyObject *answer = PyObject_CallNoArgs(call);
    if (end(self)) return Py_XDECREF(answer), NULL;
    if (!answer) return failed(self);
    Py_DECREF(answer);
    self->calls++;
    Py_RETURN_TRUE;
}

/* What a look-up raises for a call that is new, or for what is no single strided tensor, is no error. */
static PyObject *not_found(void) {
    PyObject *harmless[] = {PyExc_KeyError, PyExc_ValueError, PyExc_TypeError, PyExc_AttributeError, PyExc_RuntimeError};
    int swallow = !PyErr_Occurred();
    for (size_t i = 0; !swallow && i < sizeof harmless / sizeof *harmless; i++)
        swallow = PyErr_ExceptionMatches(harmless[i]);
    if (!swallow) return NULL;
    PyErr_Clear();
    Py_RETURN_FALSE;
}

static PyObject *wrong_count(const char *of) {
    return PyErr_Format(PyExc_TypeError, "%s", of), NULL;
}

static PyObject *replay_one(Replay *self, PyObject *const *given, Py_ssize_t count) {
    if (count != 2) return wrong_count("one(tensors, options)");
    PyObject *tensors = given[0], *options = given[1];
    if (!PyList_Check(tensors) || PyList_GET_SIZE(tensors) != 1) Py_RETURN_FALSE;
    PyObject *tensor = Py_NewRef(PyList_GET_ITEM(tensors, 0));
    PyObject *call = find(self, key_of_one(tensor, options), options);
    PyObject *made = call && is_plain(tensor) > 0 ? replay_again(self, call) : not_found();
    Py_XDECREF(call);
    Py_DECREF(tensor);
    return made;
}

static PyObject *replay_two(Replay *self, PyObject *const *given, Py_ssize_t count) {
    if (count != 5) return wrong_count("two(kind, output, input, options, detail)");
    PyObject *output = given[1], *input = given[2], *options = given[3];
    PyObject *call = find(self, key_of_two(given), options);
    int plain = call && is_plain(output) > 0 && (input == output || is_plain(input) > 0);
    PyObject *made = plain ? replay_again(self, call) : not_found();
    Py_XDECREF(call);
    return made;
}

static int replay_traverse(Replay *self, visitproc visit, void *arg) {
    for (int i = 0; i < HELD; i++) Py_VISIT(self->held[i]);
    return 0;
}

static int replay_clear(Replay *self) {
    for (int i = 0; i < HELD; i++) Py_CLEAR(self->held[i]);
    return 0;
}

static void replay_free(Replay *self) {
    PyObject_GC_UnTrack(self);
    replay_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *replay_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *given[HELD];
    if (keywords && PyDict_GET_SIZE(keywords)) return PyErr_SetString(PyExc_TypeError, "Replay takes no keywords"), NULL;
    if (!PyArg_ParseTuple(args, "O!OOOOOO", &PyDict_Type, &given[HOT], &given[WORKER], &given[ACQUIRE],
                          &given[RELEASE], &given[PROFILING], &given[REFUSED], &given[CONVERTED]))
        return NULL;
    if (make_names()) return NULL;
    Replay *self = (Replay *)type->tp_alloc(type, 0);
    for (int i = 0; self && i < HELD; i++) self->held[i] = Py_NewRef(given[i]);
    return (PyObject *)self;
}

static PyMethodDef replay_methods[] = {
    {"one", (PyCFunction)(void (*)(void))replay_one, METH_FASTCALL, "one(tensors, options) -> whether it was made again"},
    {"two", (PyCFunction)(void (*)(void))replay_two, METH_FASTCALL,
     "two(kind, output, input, options, detail) -> whether it was made again"},
    {"again", (PyCFunction)replay_again, METH_O, "again(call) -> whether the call was made"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef replay_members[] = {
    {"calls", T_ULONGLONG, offsetof(Replay, calls), READONLY, "Calls that were made again."},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject ReplayType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "commlib.native._core.Replay",
    .tp_basicsize = sizeof(Replay),
    .tp_new = replay_new,
    .tp_dealloc = (destructor)replay_free,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = (traverseproc)replay_traverse,
    .tp_clear = (inquiry)replay_clear,
    .tp_methods = replay_methods,
    .tp_members = replay_members,
    .tp_doc = "Remembered calls of torch.distributed, found and made again; see commlib/torch_backend/replay.py.",
};
