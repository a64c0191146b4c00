/*
 * Asks the real libpq how it understands a connection string. libpq is opened at run time, and what is needed of
 * it is declared here after its manual: a machine without libpq's headers, or with another version, will do.
 *
 *   libpq parse           strings on stdin, each after its length (4 bytes, as the machine has them); to each an
 *                         answer of the same form. A string is not changed by the environment.
 *   libpq connect STRING  what the string and the environment come to together. libpq looks at some values only
 *                         when it connects, so it tries to: over at once where nothing listens.
 *   libpq keywords        the options that there are
 *
 * An answer is a row of fields, each of which ends with a zero byte.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct PGconn PGconn;

typedef struct
{
    char *keyword;
    char *envvar;
    char *compiled;
    char *val;
    char *label;
    char *dispchar;
    int dispsize;
} PQconninfoOption;

static PQconninfoOption *(*PQconninfoParse)(const char *, char **);
static PQconninfoOption *(*PQconndefaults)(void);
static PQconninfoOption *(*PQconninfo)(PGconn *);
static void (*PQconninfoFree)(PQconninfoOption *);
static void (*PQfreemem)(void *);
static PGconn *(*PQconnectdb)(const char *);
static int (*PQstatus)(const PGconn *);
static char *(*PQerrorMessage)(const PGconn *);
static char *(*PQpass)(const PGconn *);
static char *(*PQhost)(const PGconn *);
static char *(*PQport)(const PGconn *);

static void die(const char *what)
{
    fprintf(stderr, "libpq: %s\n", what);
    exit(2);
}

static void load(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);

    if (symbol == NULL)
        die(name);
    memcpy(function, &symbol, sizeof symbol);
}

#define LOAD(library, name) load(library, #name, &name)

static struct
{
    char *bytes;
    size_t used, size;
} answer;

static void add(const char *field)
{
    size_t length;

    if (field == NULL)
        field = "";
    length = strlen(field) + 1;
    if (answer.used + length > answer.size)
    {
        answer.size = 2 * (answer.used + length);
        answer.bytes = realloc(answer.bytes, answer.size);
        if (answer.bytes == NULL)
            die("out of memory");
    }
    memcpy(answer.bytes + answer.used, field, length);
    answer.used += length;
}

static void add_options(PQconninfoOption *options)
{
    PQconninfoOption *option;

    if (options == NULL)
        die("no options");
    for (option = options; option->keyword != NULL; option++)
    {
        if (option->val == NULL)
            continue;
        add(option->keyword);
        add(option->val);
    }
    PQconninfoFree(options);
}

static void send(void)
{
    if (fwrite(answer.bytes, 1, answer.used, stdout) != answer.used || fflush(stdout) != 0)
        die("cannot write");
}

static void parse(void)
{
    uint32_t length;

    while (fread(&length, sizeof length, 1, stdin) == 1)
    {
        char *string = malloc((size_t) length + 1), *error = NULL;
        PQconninfoOption *options;

        if (string == NULL || fread(string, 1, length, stdin) != length)
            die("cannot read");
        string[length] = '\0';

        answer.used = 0;
        options = PQconninfoParse(string, &error);
        if (options != NULL)
        {
            add("accepted");
            add_options(options);
        }
        else
        {
            add("refused");
            add(error);
        }
        PQfreemem(error);
        free(string);

        length = (uint32_t) answer.used;
        if (fwrite(&length, sizeof length, 1, stdout) != 1)
            die("cannot write");
        send();
    }
}

static void try_to_connect(const char *string)
{
    PGconn *conn;

    /* Something listens there that does not talk as a server does. */
    alarm(30);
    conn = PQconnectdb(string);
    if (conn == NULL)
        die("no connection object");
    add(PQstatus(conn) == 0 ? "connected" : "failed");
    add(PQerrorMessage(conn));
    add(PQpass(conn));
    add(PQhost(conn));
    add(PQport(conn));
    add_options(PQconninfo(conn));
    send();
}

static void keywords(void)
{
    PQconninfoOption *option = PQconndefaults();

    if (option == NULL)
        die("no options");
    for (; option->keyword != NULL; option++)
    {
        add(option->keyword);
        add(option->envvar == NULL ? "no" : "yes");
        add(option->envvar);
        add(option->compiled == NULL ? "no" : "yes");
        add(option->compiled);
    }
    send();
}

int main(int argc, char **argv)
{
    void *library = dlopen("libpq.so.5", RTLD_NOW);

    if (library == NULL)
        die(dlerror());
    LOAD(library, PQconninfoParse);
    LOAD(library, PQconndefaults);
    LOAD(library, PQconninfo);
    LOAD(library, PQconninfoFree);
    LOAD(library, PQfreemem);
    LOAD(library, PQconnectdb);
    LOAD(library, PQstatus);
    LOAD(library, PQerrorMessage);
    LOAD(library, PQpass);
    LOAD(library, PQhost);
    LOAD(library, PQport);

    if (argc == 2 && strcmp(argv[1], "parse") == 0)
        parse();
    else if (argc == 3 && strcmp(argv[1], "connect") == 0)
        try_to_connect(argv[2]);
    else if (argc == 2 && strcmp(argv[1], "keywords") == 0)
        keywords();
    else
        die("not called as the first comment says");
    return 0;
}
