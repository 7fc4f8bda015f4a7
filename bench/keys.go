//go:build linux

package main

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // database/sql driver "sqlite"
)

// smallCount is the number of keys in the small database.
const smallCount = 10

// filled is the service on three databases: with 10 keys, with some thousands and with a million. A run makes them once.
type filled struct {
	few, some, many *gateway
	one             string   // a key of the database few
	distinct        []string // keys of the databases some and many, each used once after a start
	spare           string   // another key of some and many
}

// manyKeys measures whether authentication costs more when there are more keys: with one key, which the service then remembers,
// and with keys each used for the first time, which it must look up in the database.
func (b *bench) manyKeys(round int) error {
	if b.program == "" {
		return nil
	}
	if b.filled == nil {
		fmt.Printf("  making databases with %d, %d and %d keys\n", smallCount, b.work.uses, b.work.keys)
		f, err := b.fill()
		if err != nil {
			return err
		}
		b.filled = f
	}
	f := b.filled
	runs := []func() error{
		func() error { return b.useKeys(f.few, f.one, nil, "", cachedFew) },
		func() error { return b.useKeys(f.some, f.spare, f.distinct, firstSome, "") },
		func() error { return b.useKeys(f.many, f.spare, f.distinct, firstMany, cachedMany) },
	}
	for _, run := range turned(runs, round) {
		if err := run(); err != nil {
			return err
		}
	}
	return nil
}

// useKeys starts the service on g, measures requests with a different key each as first and then requests with one key as
// again. An empty name is not measured.
func (b *bench) useKeys(g *gateway, one string, distinct []string, first, again string) error {
	p, err := g.start("keys")
	if err != nil {
		return err
	}
	defer p.stop()
	if err := firstAnswer(p, one); err != nil {
		return err
	}
	l, err := dial(p.addr, b.work.chatConns)
	if err != nil {
		return err
	}
	defer l.close()
	// Both are measured with warm connections and memory.
	same := post("/api/chat", one, smallChat)
	if err := b.cpuPerChat(p, l, "", b.work.chats/20, func() []byte { return same }); err != nil {
		return err
	}
	if first != "" {
		requests := make([][]byte, len(distinct))
		for i, key := range distinct {
			requests[i] = post("/api/chat", key, smallChat)
		}
		next := func() []byte {
			r := requests[0]
			requests = requests[1:]
			return r
		}
		if err := b.cpuPerChat(p, l, first, len(requests), next); err != nil {
			return err
		}
	}
	if again == "" {
		return nil
	}
	return b.cpuPerChat(p, l, again, b.work.chats/2, func() []byte { return same })
}

func (b *bench) cpuPerChat(p *proc, l *load, name string, n int, next func() []byte) error {
	us, err := cpuOf(p, func() (int, error) {
		n, _, err := l.closed(next, n, 0, 2*measureLimit)
		return n, err
	})
	if err != nil || name == "" {
		return err
	}
	b.figures.add(name, service, us)
	progress(service, "%.1f us of CPU per chat, %s", us, name)
	return nil
}

// fill makes the three databases: real keys over HTTP, and for the large one additional rows that have no secret.
func (b *bench) fill() (*filled, error) {
	f := &filled{
		few:  newGateway(b.program, filepath.Join(b.dir, "keys-few"), b.mock.addr),
		some: newGateway(b.program, filepath.Join(b.dir, "keys-some"), b.mock.addr),
	}
	// The first admin key is a key too.
	few, err := f.few.keysOf(smallCount - 1)
	if err != nil {
		return nil, err
	}
	some, err := f.some.keysOf(b.work.uses + 1)
	if err != nil {
		return nil, err
	}
	f.one, f.spare, f.distinct = few[0], some[0], some[1:]
	many := *f.some
	many.dir = filepath.Join(b.dir, "keys-many")
	f.many = &many
	if err := f.some.copyTo(f.many); err != nil {
		return nil, err
	}
	file, err := database(f.many.data())
	if err != nil {
		return nil, err
	}
	return f, addRows(file, f.spare[:len("oas_0123456789")], b.work.keys-len(some)-1)
}

// keysOf starts the service on an empty directory, creates n keys and stops it.
func (g *gateway) keysOf(n int) ([]string, error) {
	p, err := g.start("fill")
	if err != nil {
		return nil, err
	}
	defer p.stop()
	return g.newKeys(p.addr, n)
}

// copyTo copies the data, which only its owner may read.
func (g *gateway) copyTo(other *gateway) error {
	if err := os.CopyFS(other.data(), os.DirFS(g.data())); err != nil {
		return err
	}
	return filepath.WalkDir(other.data(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	})
}

// database finds the SQLite file in a data directory.
func database(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		var magic [16]byte
		n, _ := f.Read(magic[:])
		f.Close()
		if bytes.Equal(magic[:n], []byte("SQLite format 3\x00")) {
			return path, nil
		}
	}
	return "", errors.New("no SQLite database in the data directory")
}

// addRows copies the row of one key n times under other previews and MACs. Creating a million keys one by one over HTTP
// would take an hour of fsyncs; this statement takes seconds. It depends only on the columns preview and mac of the table keys.
func addRows(file, preview string, n int) error {
	db, err := sql.Open("sqlite", file)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`PRAGMA synchronous = OFF`); err != nil {
		return err
	}
	columns, err := columnsOf(db, "keys")
	if err != nil {
		return err
	}
	values := make([]string, len(columns))
	for i, c := range columns {
		values[i] = c
		switch c {
		case "preview":
			// Distinct and scattered over the index: the factor has no common divisor with 10^10.
			values[i] = `printf('oas_%010d', (i * 2654435761) % 10000000000)`
		case "mac":
			values[i] = `randomblob(32)`
		}
	}
	done, err := db.Exec(`INSERT INTO keys (`+strings.Join(columns, ", ")+`)
		WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < $1)
		SELECT `+strings.Join(values, ", ")+` FROM n, (SELECT * FROM keys WHERE preview = $2)`, n, preview)
	if err != nil {
		return fmt.Errorf("fill the database with keys: %w", err)
	}
	if got, err := done.RowsAffected(); err != nil || got != int64(n) {
		return fmt.Errorf("fill the database with keys: %d rows of %d: %w", got, n, err)
	}
	_, err = db.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`)
	return err
}

// columnsOf are the names of a table's columns, in their order.
func columnsOf(db *sql.DB, table string) ([]string, error) {
	rows, err := db.Query(`SELECT name FROM pragma_table_info(?)`, table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		list = append(list, name)
	}
	return list, rows.Err()
}
