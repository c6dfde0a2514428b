/*
 * A PKCS#11 module (v2.40) that stands between an application and the module that
 * HSM_SHIM_MODULE names. It writes a line for each call to the file that
 * HSM_SHIM_LOG names, and does what the rules in the file that HSM_SHIM_RULES names
 * say. It looks at the rules at each call; when the file has changed, all counts of
 * calls start anew.
 *
 * A rule is a line of words: from, times, function, action, argument. It holds from
 * the from-th call of the function in this process (* is any function) and for so
 * many times; 0 times is for ever. The actions:
 *
 *   fail CKR        answer that, without the module being called
 *   failafter CKR   call the module, and answer that
 *   kill            kill this process (SIGKILL), without the module being called
 *   killafter       call the module, and kill this process before it hears the answer
 *   delay MS        wait first
 *   hang            wait first, until the rule has gone
 *   lose            lose all sessions first: finalize and initialise the module
 *   close           close all sessions first, which ends the login too
 *   limit N         C_OpenSession: refuse when this process has N sessions
 *   sessions N      C_GetTokenInfo: ulMaxSessionCount is N
 *   flags N         C_GetTokenInfo: these flags too
 *   find N          C_FindObjects: find no more than N at once, 0 none at all
 *   pad N           C_GetTokenInfo: the texts end with a NUL; 0: and more, 1: and rubbish
 *   form N          C_Sign: 0: r and s in DER; 1: without the first byte
 *   point N         C_GetAttributeValue of CKA_EC_POINT: 0: alone; 3: in a BIT STRING
 *   swap LABEL      C_FindObjects, C_GetAttributeValue, C_SignInit: in the place of
 *                   any private key, the one with this label (in hexadecimal)
 *
 * A last word ~P/SEED has the rule take effect on P percent of those calls only. Which
 * ones follows from SEED and the number of the call, so a run can be repeated.
 *
 * A line of the log: number of the call in this process, process, thread, function,
 * result, the actions that took effect or "-", and what C_Sign was to sign (in
 * hexadecimal, up to 128 bytes) or "-", also when it only asks for the length. A call
 * that hangs writes one with "hanging" in the place of the result when it begins to.
 * One that is killed before the module is called writes none.
 *
 * A rule that cannot be read makes every call answer 0x80005110, so that no test
 * passes by mistake.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What of PKCS#11 is needed here. On the systems that have cc the structures are not packed. */

typedef unsigned long ulong;

enum { OK = 0, GENERAL_ERROR = 5, ARGUMENTS_BAD = 7, SESSION_COUNT = 0xb1 };
enum { SERIAL_SESSION = 4 };
enum { CLASS = 0, LABEL = 3, PRIVATE_KEY = 3, EC_POINT = 0x181, BUFFER_TOO_SMALL = 0x150 };
#define BAD_RULES 0x80005110UL

struct version { unsigned char major, minor; };
struct attribute { ulong type; void *value; ulong length; };
struct session_info { ulong slot, state, flags, device_error; };
struct initialize_args { void *create, *destroy, *lock, *unlock; ulong flags; void *reserved; };
struct token_info {
	unsigned char label[32], manufacturer[32], model[16], serial[16];
	ulong flags, max_sessions;
	ulong others[9];
	struct version hardware, firmware;
	unsigned char time[16];
};

/*
 * Every function in the order of CK_FUNCTION_LIST: its name, its parameters, their
 * names, and PASS when its body is the module's alone or OWN when it is own_NAME.
 */
#define FUNCTIONS(F) \
	F(C_Initialize, (void *a), (a), OWN) \
	F(C_Finalize, (void *a), (a), OWN) \
	F(C_GetInfo, (void *a), (a), PASS) \
	F(C_GetFunctionList, (void *a), (a), PASS) \
	F(C_GetSlotList, (unsigned char a, ulong *b, ulong *c), (a, b, c), PASS) \
	F(C_GetSlotInfo, (ulong a, void *b), (a, b), PASS) \
	F(C_GetTokenInfo, (ulong a, struct token_info *b), (a, b), OWN) \
	F(C_GetMechanismList, (ulong a, ulong *b, ulong *c), (a, b, c), PASS) \
	F(C_GetMechanismInfo, (ulong a, ulong b, void *c), (a, b, c), PASS) \
	F(C_InitToken, (ulong a, void *b, ulong c, void *d), (a, b, c, d), PASS) \
	F(C_InitPIN, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_SetPIN, (ulong a, void *b, ulong c, void *d, ulong e), (a, b, c, d, e), PASS) \
	F(C_OpenSession, (ulong a, ulong b, void *c, void *d, ulong *e), (a, b, c, d, e), OWN) \
	F(C_CloseSession, (ulong a), (a), OWN) \
	F(C_CloseAllSessions, (ulong a), (a), OWN) \
	F(C_GetSessionInfo, (ulong a, struct session_info *b), (a, b), PASS) \
	F(C_GetOperationState, (ulong a, void *b, ulong *c), (a, b, c), PASS) \
	F(C_SetOperationState, (ulong a, void *b, ulong c, ulong d, ulong e), (a, b, c, d, e), PASS) \
	F(C_Login, (ulong a, ulong b, void *c, ulong d), (a, b, c, d), PASS) \
	F(C_Logout, (ulong a), (a), PASS) \
	F(C_CreateObject, (ulong a, void *b, ulong c, ulong *d), (a, b, c, d), PASS) \
	F(C_CopyObject, (ulong a, ulong b, void *c, ulong d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DestroyObject, (ulong a, ulong b), (a, b), PASS) \
	F(C_GetObjectSize, (ulong a, ulong b, ulong *c), (a, b, c), PASS) \
	F(C_GetAttributeValue, (ulong a, ulong b, struct attribute *c, ulong d), (a, b, c, d), OWN) \
	F(C_SetAttributeValue, (ulong a, ulong b, void *c, ulong d), (a, b, c, d), PASS) \
	F(C_FindObjectsInit, (ulong a, struct attribute *b, ulong c), (a, b, c), PASS) \
	F(C_FindObjects, (ulong a, ulong *b, ulong c, ulong *d), (a, b, c, d), OWN) \
	F(C_FindObjectsFinal, (ulong a), (a), PASS) \
	F(C_EncryptInit, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_Encrypt, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_EncryptUpdate, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_EncryptFinal, (ulong a, void *b, ulong *c), (a, b, c), PASS) \
	F(C_DecryptInit, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_Decrypt, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DecryptUpdate, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DecryptFinal, (ulong a, void *b, ulong *c), (a, b, c), PASS) \
	F(C_DigestInit, (ulong a, void *b), (a, b), PASS) \
	F(C_Digest, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DigestUpdate, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_DigestKey, (ulong a, ulong b), (a, b), PASS) \
	F(C_DigestFinal, (ulong a, void *b, ulong *c), (a, b, c), PASS) \
	F(C_SignInit, (ulong a, void *b, ulong c), (a, b, c), OWN) \
	F(C_Sign, (ulong a, unsigned char *b, ulong c, void *d, ulong *e), (a, b, c, d, e), OWN) \
	F(C_SignUpdate, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_SignFinal, (ulong a, void *b, ulong *c), (a, b, c), PASS) \
	F(C_SignRecoverInit, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_SignRecover, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_VerifyInit, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_Verify, (ulong a, void *b, ulong c, void *d, ulong e), (a, b, c, d, e), PASS) \
	F(C_VerifyUpdate, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_VerifyFinal, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_VerifyRecoverInit, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_VerifyRecover, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DigestEncryptUpdate, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DecryptDigestUpdate, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_SignEncryptUpdate, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_DecryptVerifyUpdate, (ulong a, void *b, ulong c, void *d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_GenerateKey, (ulong a, void *b, void *c, ulong d, ulong *e), (a, b, c, d, e), PASS) \
	F(C_GenerateKeyPair, (ulong a, void *b, void *c, ulong d, void *e, ulong f, ulong *g, ulong *h), (a, b, c, d, e, f, g, h), PASS) \
	F(C_WrapKey, (ulong a, void *b, ulong c, ulong d, void *e, ulong *f), (a, b, c, d, e, f), PASS) \
	F(C_UnwrapKey, (ulong a, void *b, ulong c, void *d, ulong e, void *f, ulong g, ulong *h), (a, b, c, d, e, f, g, h), PASS) \
	F(C_DeriveKey, (ulong a, void *b, ulong c, void *d, ulong e, ulong *f), (a, b, c, d, e, f), PASS) \
	F(C_SeedRandom, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_GenerateRandom, (ulong a, void *b, ulong c), (a, b, c), PASS) \
	F(C_GetFunctionStatus, (ulong a), (a), PASS) \
	F(C_CancelFunction, (ulong a), (a), PASS) \
	F(C_WaitForSlotEvent, (ulong a, ulong *b, void *c), (a, b, c), PASS)

#define MEMBER(name, params, args, body) ulong (*name) params;
struct function_list { struct version version; FUNCTIONS(MEMBER) };

#define ID(name, params, args, body) ID_##name,
enum { FUNCTIONS(ID) FUNCTION_COUNT, ANY = FUNCTION_COUNT };

#define NAME(name, params, args, body) #name,
static const char *const names[] = { FUNCTIONS(NAME) "*" };

/* The rules. */

enum action { FAIL, FAIL_AFTER, KILL, KILL_AFTER, DELAY, HANG, LOSE, CLOSE, LIMIT, SESSIONS, FLAGS, FIND, PAD, FORM, POINT, SWAP, ACTION_COUNT };
static const char *const actions[] = { "fail", "failafter", "kill", "killafter", "delay", "hang", "lose", "close", "limit", "sessions", "flags", "find", "pad", "form", "point", "swap" };

enum { MAX_RULES = 64, MAX_LINE = 512, MAX_SIGNED = 128 };

struct rule {
	int function; /* or ANY */
	enum action action;
	ulong from, times, calls;
	ulong percent, seed; /* 0: every call */
	ulong number;
	char label[MAX_LINE];
	ulong label_length;
	char line[MAX_LINE]; /* as it stands in the file */
};

static struct {
	pthread_mutex_t mutex; /* guards what follows */
	struct rule rule[MAX_RULES];
	int count;
	int bad;
	struct stat seen;
} rules = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static char module_path[PATH_MAX], rules_path[PATH_MAX], log_path[PATH_MAX];
static int log_file = -1;
static const struct function_list *module;

/* Held for reading while the module is called, and for writing while all sessions are lost. */
static pthread_rwlock_t in_module = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static int word_in(const char *word, const char *const *list, int count)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(word, list[i]))
			return i;
	return -1;
}

static int unhex(const char *hex, char *out, ulong *length)
{
	ulong n = strlen(hex) / 2;
	for (ulong i = 0; i < n; i++) {
		unsigned byte;
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			return 0;
		out[i] = (char)byte;
	}
	*length = n;
	return n > 0;
}

static int parse_rule(const char *line, struct rule *r)
{
	char function[MAX_LINE], action[MAX_LINE], argument[MAX_LINE] = "";
	memset(r, 0, sizeof *r);
	if (sscanf(line, "%lu %lu %511s %511s %511s", &r->from, &r->times, function, action, argument) < 4)
		return 0;
	int id = word_in(function, names, FUNCTION_COUNT + 1), what = word_in(action, actions, ACTION_COUNT);
	if (id < 0 || what < 0)
		return 0;
	r->function = id;
	r->action = what;
	strcpy(r->line, line);
	const char *chance = strchr(line, '~');
	if (chance && (sscanf(chance, "~%lu/%lu", &r->percent, &r->seed) != 2 || !r->percent || r->percent > 100))
		return 0;
	if (what == HANG || what == LOSE || what == CLOSE || what == KILL || what == KILL_AFTER)
		return 1;
	if (what == SWAP)
		return unhex(argument, r->label, &r->label_length);
	char *end;
	r->number = strtoul(argument, &end, 0);
	return *argument && !*end;
}

static int same_file(const struct stat *a, const struct stat *b)
{
	return a->st_ino == b->st_ino && a->st_size == b->st_size && !memcmp(&a->st_mtim, &b->st_mtim, sizeof a->st_mtim);
}

/* read_rules reads the file anew when it has changed. The caller holds the mutex. */
static void read_rules(void)
{
	struct stat now;
	if (stat(rules_path, &now) != 0)
		memset(&now, 0, sizeof now);
	if (same_file(&now, &rules.seen))
		return;
	rules.seen = now;
	rules.count = rules.bad = 0;
	FILE *file = now.st_ino ? fopen(rules_path, "re") : NULL;
	if (!file)
		return;
	fstat(fileno(file), &rules.seen); /* it may be another by now */
	char line[MAX_LINE];
	while (!rules.bad && fgets(line, sizeof line, file)) {
		if (rules.count == MAX_RULES || !parse_rule(line, &rules.rule[rules.count++]))
			rules.bad = 1;
	}
	fclose(file);
}

static int rule_stands(const struct rule *r)
{
	int stands = 0;
	pthread_mutex_lock(&rules.mutex);
	read_rules();
	for (int i = 0; i < rules.count && !stands; i++)
		stands = !strcmp(rules.rule[i].line, r->line);
	pthread_mutex_unlock(&rules.mutex);
	return stands;
}

/* One call of the application. */

struct call {
	ulong number;
	int function;
	const struct function_list *module;
	struct rule rule[MAX_RULES]; /* those that hold for it */
	int count;
	int fails, fails_after;
	int killed_after;
	ulong result; /* when it fails */
	char did[MAX_LINE];
	char to_sign[2 * MAX_SIGNED + 1];
};

static atomic_ulong calls, calls_in_flight;

static void did(struct call *c, const char *what)
{
	size_t length = strlen(c->did);
	snprintf(c->did + length, sizeof c->did - length, "%s%s", length ? "," : "", what);
}

/* write_line appends one line by one write, so that processes may share the file. */
static void write_line(const struct call *c, const char *result)
{
	char line[3 * MAX_LINE];
	int length = snprintf(line, sizeof line, "%lu %d %ld %s %s %s %s\n", c->number, getpid(), syscall(SYS_gettid),
		names[c->function], result, *c->did ? c->did : "-", *c->to_sign ? c->to_sign : "-");
	if (log_file >= 0 && write(log_file, line, length) != length)
		fprintf(stderr, "shim: %s: %s\n", log_path, strerror(errno));
}

static void wait_ms(ulong ms)
{
	struct timespec left = { ms / 1000, (ms % 1000) * 1000000 };
	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

/* Sessions of this process, with their slots. */

static struct {
	pthread_mutex_t mutex;
	struct { ulong handle, slot; } *open;
	ulong count, room;
	ulong opening; /* calls of C_OpenSession in flight */
} sessions = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static int may_open(ulong limit)
{
	pthread_mutex_lock(&sessions.mutex);
	int may = sessions.count + sessions.opening < limit;
	sessions.opening += may;
	pthread_mutex_unlock(&sessions.mutex);
	return may;
}

static void opened(ulong result, ulong slot, const ulong *handle)
{
	pthread_mutex_lock(&sessions.mutex);
	sessions.opening--;
	if (result == OK && sessions.count == sessions.room) {
		sessions.room = 2 * sessions.room + 16;
		sessions.open = realloc(sessions.open, sessions.room * sizeof *sessions.open);
		if (!sessions.open)
			abort();
	}
	if (result == OK) {
		sessions.open[sessions.count].handle = *handle;
		sessions.open[sessions.count++].slot = slot;
	}
	pthread_mutex_unlock(&sessions.mutex);
}

/* closed forgets one session, or all of a slot, or all. */
static void closed(const ulong *handle, const ulong *slot)
{
	pthread_mutex_lock(&sessions.mutex);
	ulong kept = 0;
	for (ulong i = 0; i < sessions.count; i++)
		if ((handle && sessions.open[i].handle != *handle) || (slot && sessions.open[i].slot != *slot))
			sessions.open[kept++] = sessions.open[i];
	sessions.count = kept;
	pthread_mutex_unlock(&sessions.mutex);
}

/* Initialisation, which may have to be done again. */

static struct { int done, has_args; struct initialize_args args; } initialized;

/* lose_sessions makes the module forget sessions, logins and handles, as a restart of its HSM does. */
static void lose_sessions(struct call *c)
{
	pthread_rwlock_wrlock(&in_module);
	if (initialized.done) {
		ulong result = c->module->C_Finalize(NULL);
		if (result == OK)
			result = c->module->C_Initialize(initialized.has_args ? &initialized.args : NULL);
		closed(NULL, NULL);
		did(c, result == OK ? "lose" : "lose-failed");
	}
	pthread_rwlock_unlock(&in_module);
}

/* close_sessions closes all sessions of the process behind its back. */
static void close_sessions(struct call *c)
{
	pthread_rwlock_wrlock(&in_module);
	while (sessions.count) {
		ulong slot = sessions.open[0].slot;
		c->module->C_CloseAllSessions(slot);
		closed(NULL, &slot);
	}
	did(c, "close");
	pthread_rwlock_unlock(&in_module);
}

static void hang(struct call *c, const struct rule *r)
{
	did(c, "hang");
	write_line(c, "hanging");
	while (rule_stands(r))
		wait_ms(2);
}

/* falls_on reports whether the rule takes effect on its n-th call, by a mix of n and the seed (splitmix64). */
static int falls_on(const struct rule *r, ulong n)
{
	unsigned long long z = (r->seed + 1) * 0xd1342543de82ef95ULL + n * 0x9e3779b97f4a7c15ULL;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return !r->percent || (z ^ (z >> 31)) % 100 < r->percent;
}

/* choose_rules takes note of the call and copies the rules that hold for it. */
static void choose_rules(struct call *c)
{
	pthread_mutex_lock(&rules.mutex);
	read_rules();
	if (rules.bad) {
		c->fails = 1;
		c->result = BAD_RULES;
		did(c, "bad-rules");
	}
	for (int i = 0; i < rules.count && !rules.bad; i++) {
		struct rule *r = &rules.rule[i];
		if (r->function != ANY && r->function != c->function)
			continue;
		ulong n = ++r->calls;
		if (n >= r->from && (!r->times || n - r->from < r->times) && falls_on(r, n))
			c->rule[c->count++] = *r;
	}
	c->module = module;
	pthread_mutex_unlock(&rules.mutex);
}

static void begin(struct call *c, int function)
{
	c->number = ++calls;
	calls_in_flight++;
	c->function = function;
	c->count = c->fails = c->fails_after = c->killed_after = 0;
	c->did[0] = c->to_sign[0] = 0;
	choose_rules(c);
	for (int i = 0; i < c->count; i++) {
		const struct rule *r = &c->rule[i];
		switch (r->action) {
		case KILL: kill(getpid(), SIGKILL); break;
		case KILL_AFTER: did(c, "killafter"); c->killed_after = 1; break;
		case DELAY: did(c, "delay"); wait_ms(r->number); break;
		case HANG: hang(c, r); break;
		case LOSE: lose_sessions(c); break;
		case CLOSE: close_sessions(c); break;
		case FAIL: did(c, "fail"); c->fails = 1; c->result = r->number; break;
		case FAIL_AFTER: did(c, "failafter"); c->fails_after = 1; c->result = r->number; break;
		default: break;
		}
	}
	pthread_rwlock_rdlock(&in_module);
}

static ulong end(struct call *c, ulong result)
{
	pthread_rwlock_unlock(&in_module);
	if (c->fails_after)
		result = c->result;
	char text[32];
	snprintf(text, sizeof text, "0x%08lx", result);
	write_line(c, text);
	if (c->killed_after)
		kill(getpid(), SIGKILL);
	calls_in_flight--;
	return result;
}

static const struct rule *rule_for(const struct call *c, enum action action)
{
	for (int i = 0; i < c->count; i++)
		if (c->rule[i].action == action)
			return &c->rule[i];
	return NULL;
}

/* Bodies of the functions that do more than the module's. */

static ulong own_C_Initialize(struct call *c, struct initialize_args *args)
{
	ulong result = c->module->C_Initialize(args);
	if (result == OK) {
		initialized.done = 1;
		initialized.has_args = args != NULL;
		if (args) {
			initialized.args = *args;
			if (args->reserved) /* of NSS, the one that uses it, a text */
				initialized.args.reserved = strdup(args->reserved);
		}
	}
	return result;
}

static ulong own_C_Finalize(struct call *c, void *reserved)
{
	ulong result = c->module->C_Finalize(reserved);
	if (result == OK) {
		initialized.done = 0;
		closed(NULL, NULL);
	}
	return result;
}

/* pad has a text of fixed length end with NULs, or with one and rubbish, instead of blanks. */
static void pad(unsigned char *text, int length, ulong rubbish)
{
	int end = length;
	while (end > 0 && text[end - 1] == ' ')
		end--;
	for (int i = end; i < length; i++)
		text[i] = rubbish && i > end ? '#' : 0;
}

static ulong own_C_GetTokenInfo(struct call *c, ulong slot, struct token_info *info)
{
	ulong result = c->module->C_GetTokenInfo(slot, info);
	const struct rule *most = rule_for(c, SESSIONS), *flags = rule_for(c, FLAGS);
	if (result == OK && most) {
		info->max_sessions = most->number;
		did(c, "sessions");
	}
	const struct rule *padding = rule_for(c, PAD);
	if (result == OK && padding) {
		pad(info->label, sizeof info->label, padding->number);
		pad(info->manufacturer, sizeof info->manufacturer, padding->number);
		pad(info->model, sizeof info->model, padding->number);
		pad(info->serial, sizeof info->serial, padding->number);
		did(c, "pad");
	}
	if (result == OK && flags) {
		info->flags |= flags->number;
		did(c, "flags");
	}
	return result;
}

static ulong own_C_OpenSession(struct call *c, ulong slot, ulong flags, void *application, void *notify, ulong *session)
{
	const struct rule *limit = rule_for(c, LIMIT);
	if (!may_open(limit ? limit->number : ULONG_MAX)) {
		did(c, "limit");
		return SESSION_COUNT;
	}
	ulong result = c->module->C_OpenSession(slot, flags, application, notify, session);
	opened(result, slot, session);
	return result;
}

static ulong own_C_CloseSession(struct call *c, ulong session)
{
	ulong result = c->module->C_CloseSession(session);
	if (result == OK)
		closed(&session, NULL);
	return result;
}

static ulong own_C_CloseAllSessions(struct call *c, ulong slot)
{
	ulong result = c->module->C_CloseAllSessions(slot);
	if (result == OK)
		closed(NULL, &slot);
	return result;
}

/* labelled finds the private key with that label, in a session of its own; 0: none. */
static ulong labelled(const struct function_list *m, ulong session, struct rule r)
{
	struct session_info info;
	ulong class = PRIVATE_KEY, own, key = 0, count = 0;
	struct attribute template[] = { { CLASS, &class, sizeof class }, { LABEL, r.label, r.label_length } };
	if (m->C_GetSessionInfo(session, &info) != OK ||
	    m->C_OpenSession(info.slot, SERIAL_SESSION, NULL, NULL, &own) != OK)
		return 0;
	if (m->C_FindObjectsInit(own, template, 2) == OK) {
		if (m->C_FindObjects(own, &key, 1, &count) != OK || count != 1)
			key = 0;
		m->C_FindObjectsFinal(own);
	}
	m->C_CloseSession(own);
	return key;
}

/* swap puts the key of the rule in the place of another private key. */
static ulong swap(struct call *c, ulong session, ulong *object)
{
	const struct rule *r = rule_for(c, SWAP);
	ulong class = 0;
	struct attribute query = { CLASS, &class, sizeof class };
	if (!r || c->module->C_GetAttributeValue(session, *object, &query, 1) != OK || class != PRIVATE_KEY)
		return OK;
	ulong other = labelled(c->module, session, *r);
	did(c, other ? "swap" : "swap-failed");
	if (!other)
		return GENERAL_ERROR;
	*object = other;
	return OK;
}

static ulong own_C_FindObjects(struct call *c, ulong session, ulong *objects, ulong room, ulong *count)
{
	const struct rule *most = rule_for(c, FIND);
	if (most) {
		did(c, "find");
		room = room < most->number ? room : most->number;
		*count = 0;
		if (!room)
			return OK;
	}
	ulong result = c->module->C_FindObjects(session, objects, room, count);
	for (ulong i = 0; result == OK && i < *count; i++)
		result = swap(c, session, &objects[i]);
	return result;
}

/* put writes a header of DER and returns its length. */
static ulong put_header(unsigned char *to, unsigned char tag, ulong length)
{
	to[0] = tag;
	if (length < 0x80) {
		to[1] = length;
		return 2;
	}
	to[1] = 0x81;
	to[2] = length;
	return 3;
}

/* answer hands out a value as PKCS#11 does: its length alone, or both when there is room. */
static ulong answer(const unsigned char *value, ulong length, void *to, ulong *room)
{
	ulong had = *room;
	*room = length;
	if (!to)
		return OK;
	if (had < length)
		return BUFFER_TOO_SMALL;
	memcpy(to, value, length);
	return OK;
}

/* point reads CKA_EC_POINT and takes it out of its OCTET STRING. */
static ulong point(struct call *c, ulong session, ulong object, ulong tag, struct attribute *wanted)
{
	unsigned char raw[256], made[300];
	struct attribute own = { EC_POINT, raw, sizeof raw };
	ulong result = c->module->C_GetAttributeValue(session, object, &own, 1), at = 0;
	if (result != OK)
		return result;
	ulong header = raw[1] < 0x80 ? 2 : 3, length = own.length - header;
	if (tag) {
		at = put_header(made, tag, length + 1);
		made[at++] = 0; /* no unused bits */
	}
	memcpy(made + at, raw + header, length);
	did(c, "point");
	return answer(made, at + length, wanted->value, &wanted->length);
}

static ulong own_C_GetAttributeValue(struct call *c, ulong session, ulong object, struct attribute *template, ulong count)
{
	const struct rule *form = rule_for(c, POINT);
	if (form && count == 1 && template->type == EC_POINT)
		return point(c, session, object, form->number, template);
	ulong result = swap(c, session, &object);
	return result == OK ? c->module->C_GetAttributeValue(session, object, template, count) : result;
}

static ulong own_C_SignInit(struct call *c, ulong session, void *mechanism, ulong key)
{
	ulong result = swap(c, session, &key);
	return result == OK ? c->module->C_SignInit(session, mechanism, key) : result;
}

/* put_integer writes an unsigned number as an INTEGER of DER and returns its length. */
static ulong put_integer(unsigned char *to, const unsigned char *number, ulong length)
{
	while (length > 1 && !*number) {
		number++;
		length--;
	}
	ulong sign = *number >= 0x80, at = put_header(to, 2, length + sign);
	if (sign)
		to[at++] = 0;
	memcpy(to + at, number, length);
	return at + length;
}

/* sign_as signs, and gives the signature a form that PKCS#11 does not have. */
static ulong sign_as(struct call *c, ulong session, unsigned char *data, ulong length, void *signature, ulong *room, ulong form)
{
	unsigned char raw[1024], body[300], made[1024];
	ulong n = sizeof raw, had = *room;
	ulong result = c->module->C_Sign(session, data, length, NULL, &n);
	*room = n + 16; /* more than it will be */
	if (result != OK || !signature)
		return result;
	if (had < *room)
		return BUFFER_TOO_SMALL;
	result = c->module->C_Sign(session, data, length, raw, &n);
	if (result != OK)
		return result;
	did(c, "form");
	if (form)
		return answer(raw + 1, n - 1, signature, room);
	ulong inner = put_integer(body, raw, n / 2);
	inner += put_integer(body + inner, raw + n / 2, n / 2);
	ulong at = put_header(made, 0x30, inner);
	memcpy(made + at, body, inner);
	return answer(made, at + inner, signature, room);
}

static ulong own_C_Sign(struct call *c, ulong session, unsigned char *data, ulong length, void *signature, ulong *room)
{
	for (ulong i = 0; data && signature && i < length && length <= MAX_SIGNED; i++)
		snprintf(c->to_sign + 2 * i, 3, "%02x", data[i]);
	const struct rule *form = rule_for(c, FORM);
	if (form)
		return sign_as(c, session, data, length, signature, room, form->number);
	return c->module->C_Sign(session, data, length, signature, room);
}

#define LIST(...) __VA_ARGS__
#define BODY_PASS(name, args) this_call.module->name args
#define BODY_OWN(name, args) own_##name(&this_call, LIST args)
#define FUNCTION(name, params, args, body) \
	static ulong shim_##name params \
	{ \
		struct call this_call; \
		begin(&this_call, ID_##name); \
		return end(&this_call, this_call.fails ? this_call.result : BODY_##body(name, args)); \
	}
FUNCTIONS(FUNCTION)

/* Loading. */

/* take copies an environment variable and tells whether it has changed. */
static int take(const char *variable, char *into)
{
	const char *value = getenv(variable);
	if (!value)
		value = "";
	int changed = strcmp(value, into) != 0;
	snprintf(into, PATH_MAX, "%s", value);
	return changed;
}

/*
 * load loads the module, anew when the application has loaded the shim anew: then the module
 * begins as it would without the shim. It stays loaded when it is in use.
 */
static void load(void)
{
	static void *library;
	ulong (*get)(const struct function_list **);
	const struct function_list *list = NULL;
	if (library && !initialized.done && !calls_in_flight)
		dlclose(library);
	library = dlopen(module_path, RTLD_NOW | RTLD_LOCAL);
	module = NULL;
	if (library && (*(void **)&get = dlsym(library, "C_GetFunctionList")) && get(&list) == OK && list) {
		module = list;
		return;
	}
	const char *why = dlerror();
	fprintf(stderr, "shim: HSM_SHIM_MODULE=%s: %s\n", module_path, why ? why : "is no PKCS#11 module");
}

/* configure follows the environment. The caller holds the mutex of the rules. */
static void configure(void)
{
	if (take("HSM_SHIM_RULES", rules_path)) {
		memset(&rules.seen, 0, sizeof rules.seen);
		rules.count = rules.bad = 0;
	}
	if (take("HSM_SHIM_LOG", log_path) || log_file < 0) {
		if (log_file >= 0)
			close(log_file);
		log_file = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	}
	if (take("HSM_SHIM_MODULE", module_path) || !initialized.done)
		load();
}

#define OVERRIDE(name, params, args, body) if (list.name) list.name = shim_##name;

ulong C_GetFunctionList(const struct function_list **out)
{
	static struct function_list list;
	ulong result = GENERAL_ERROR;
	if (!out)
		return ARGUMENTS_BAD;
	pthread_mutex_lock(&rules.mutex);
	configure();
	if (module) {
		list = *module;
		FUNCTIONS(OVERRIDE)
		list.C_GetFunctionList = (ulong (*)(void *))C_GetFunctionList;
		*out = &list;
		result = OK;
	}
	pthread_mutex_unlock(&rules.mutex);
	return result;
}
