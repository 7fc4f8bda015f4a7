package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"ollama-api-service/internal/api"
)

// StoredKey is a key with the hashes that its secret is checked against.
type StoredKey struct {
	api.Key
	MAC           []byte
	PreviousMAC   []byte    // of the secret that a rotation replaced, or nil
	PreviousUntil time.Time // PreviousMAC is valid before this time
}

// keyColumns are the columns of a key: its secrets, then api.KeyFields in their order.
var keyColumns = func() string {
	names := []string{"mac", "previous_mac", "previous_until"}
	for _, f := range api.KeyFields {
		names = append(names, columnOf(f))
	}
	return strings.Join(names, ", ")
}()

func columnOf(f *api.KeyField) string { return strings.TrimPrefix(f.Name, "key_") }

// CreateKey stores a new key. A zero CreatedAt becomes by.At. It returns CodeBadRequest for an invalid field or an expiry before by.At,
// and CodeConflict if the preview is taken.
func (s *Store) CreateKey(ctx context.Context, k api.Key, mac []byte, by api.Change) error {
	if err := k.Validate(); err != nil {
		return err
	}
	if err := api.CheckExpiry(k.ExpiresAt, by.At); err != nil {
		return err
	}
	if k.CreatedAt.IsZero() {
		k.CreatedAt = by.At
	}
	detail, err := fields(k)
	if err != nil {
		return err
	}
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		b := &builder{}
		values := []string{b.param(mac), "NULL", "NULL"}
		for _, f := range api.KeyFields {
			values = append(values, b.param(stored(f.At(&k))))
		}
		//nolint:gosec // values are placeholders, and columns are names of api.KeyFields
		done, err := tx.ExecContext(ctx, `INSERT INTO keys (`+keyColumns+`) VALUES (`+strings.Join(values, ", ")+`)
			ON CONFLICT (preview) DO NOTHING`, b.args...)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, api.Errorf(api.CodeConflict, "a key %s already exists", k.Preview))
		}
		all := make(map[string]any, len(detail))
		for name, value := range detail {
			all[name] = value
		}
		return note(ctx, tx, by, ActionCreate, k.Preview, all)
	})
}

// Key returns the key with this preview, revoked or not, or CodeNotFound.
func (s *Store) Key(ctx context.Context, preview string) (StoredKey, error) {
	k, err := scanKey(s.reader.QueryRowContext(ctx, keyByPreview, preview))
	return k, keyError(err)
}

var keyByPreview = `SELECT ` + keyColumns + ` FROM keys WHERE preview = $1`

// Secrets calls each with the MAC of every secret: those of all keys, including revoked ones, and those that rotations replaced. A MAC is
// only valid during the call.
func (s *Store) Secrets(ctx context.Context, each func(mac []byte)) error {
	return s.read(ctx, func(tx *sql.Tx) error {
		const all = `SELECT mac, previous_mac FROM keys`
		return rows(ctx, tx, all, func(r *sql.Rows) error {
			var mac, previous sql.RawBytes
			if err := r.Scan(&mac, &previous); err != nil {
				return err
			}
			each(mac)
			if previous != nil {
				each(previous)
			}
			return nil
		})
	})
}

// Keys returns all keys, including revoked ones, newest first.
func (s *Store) Keys(ctx context.Context) ([]api.Key, error) {
	var keys []api.Key
	err := s.read(ctx, func(tx *sql.Tx) error {
		return rows(ctx, tx, `SELECT `+keyColumns+` FROM keys ORDER BY created_at DESC, preview`, func(r *sql.Rows) error {
			k, err := scanKey(r)
			keys = append(keys, k.Key)
			return err
		})
	})
	return keys, err
}

// ChangeKey applies a patch and returns the new key. It returns CodeNotFound, and CodeBadRequest if the result is invalid or the new
// expiry is before by.At. It returns CodeConflict if the key is revoked or is the last admin, and, without by.Force, if the change locks
// out the key that makes it. A patch that changes nothing writes nothing.
func (s *Store) ChangeKey(ctx context.Context, preview string, p api.KeyPatch, by api.Change) (api.Key, error) {
	return s.alter(ctx, preview, func(ctx context.Context, tx *sql.Tx, old StoredKey) error {
		if old.RevokedAt != nil {
			return errRevoked(preview)
		}
		k := old.Key
		p.Apply(&k)
		if err := k.Validate(); err != nil {
			return err
		}
		if err := checkCaller(old.Key, k, by); err != nil {
			return err
		}
		if p.Has("expires_at") {
			endsItself := by.Force && by.Actor == preview && k.ExpiresAt != nil && !k.ExpiresAt.After(by.At)
			if err := api.CheckExpiry(k.ExpiresAt, by.At); err != nil && !endsItself {
				return err
			}
			if k.ExpiresAt != nil {
				at := instant(millis(*k.ExpiresAt))
				k.ExpiresAt = &at
			}
		}
		changed, err := differences(old.Key, k)
		if err != nil || len(changed) == 0 {
			return err
		}
		if err := keepAdmin(ctx, tx, old.Key, k, by); err != nil {
			return err
		}
		b := &builder{}
		var set []string
		for _, f := range api.KeyFields {
			if f.Settable() {
				set = append(set, columnOf(f)+" = "+b.param(stored(f.At(&k))))
			}
		}
		//nolint:gosec // set has placeholders and names of api.KeyFields
		_, err = tx.ExecContext(ctx, `UPDATE keys SET `+strings.Join(set, ", ")+` WHERE preview = `+b.param(preview), b.args...)
		if err != nil {
			return err
		}
		return note(ctx, tx, by, ActionChange, preview, changed)
	})
}

// RotateKey gives the key a new secret. The previous one keeps working for grace, an earlier one stops working. It returns CodeNotFound,
// CodeBadRequest for a grace below 0 or above api.MaxGrace, and CodeConflict for a revoked key and, without by.Force, while the secret
// that the last rotation replaced still works.
func (s *Store) RotateKey(ctx context.Context, preview string, mac []byte, grace time.Duration, by api.Change) (api.Key, error) {
	if grace < 0 || grace > api.MaxGrace {
		return api.Key{}, api.Errorf(api.CodeBadRequest, "grace_seconds must be from 0 to %d", int64(api.MaxGrace/time.Second))
	}
	return s.alter(ctx, preview, func(ctx context.Context, tx *sql.Tx, old StoredKey) error {
		if old.RevokedAt != nil {
			return errRevoked(preview)
		}
		if old.PreviousMAC != nil && by.At.Before(old.PreviousUntil) && !by.Force {
			return api.Errorf(api.CodeConflict, "the secret that the last rotation of %s replaced works until %s, and another rotation would invalidate it now: "+
				"wait, or send ?force=true (--force on the command line)", preview, old.PreviousUntil.Format(time.RFC3339))
		}
		var before []byte
		var until any
		if grace > 0 {
			before, until = old.MAC, millis(by.At.Add(grace))
		}
		_, err := tx.ExecContext(ctx, `UPDATE keys SET mac = $2, previous_mac = $3, previous_until = $4 WHERE preview = $1`,
			preview, mac, before, until)
		if err != nil {
			return err
		}
		return note(ctx, tx, by, ActionRotate, preview, map[string]any{"grace_seconds": grace.Seconds()})
	})
}

// RevokeKey ends a key permanently. Its record stays. It returns CodeNotFound, and CodeConflict for the last admin. Revoking a revoked
// key changes nothing.
func (s *Store) RevokeKey(ctx context.Context, preview string, by api.Change) (api.Key, error) {
	return s.alter(ctx, preview, func(ctx context.Context, tx *sql.Tx, old StoredKey) error {
		if old.RevokedAt != nil {
			return nil
		}
		k := old.Key
		k.RevokedAt = &by.At
		if err := keepAdmin(ctx, tx, old.Key, k, by); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE keys SET revoked_at = $2, previous_mac = NULL, previous_until = NULL WHERE preview = $1`,
			preview, millis(by.At))
		if err != nil {
			return err
		}
		return note(ctx, tx, by, ActionRevoke, preview, map[string]any{"name": old.Name, "role": old.Role})
	})
}

// RehashKey replaces the current or the previous MAC of the key if it still equals oldMAC: the same secret under a new SECRET_KEY. This
// is not a change of the key and writes no audit entry. If no MAC equals oldMAC, it does nothing.
func (s *Store) RehashKey(ctx context.Context, preview string, oldMAC, newMAC []byte) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE keys SET mac = $3 WHERE preview = $1 AND mac = $2`, preview, oldMAC, newMAC); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE keys SET previous_mac = $3 WHERE preview = $1 AND previous_mac = $2`, preview, oldMAC, newMAC)
		return err
	})
}

// AdminExists reports whether an admin key is valid at now.
func (s *Store) AdminExists(ctx context.Context, now time.Time) (bool, error) {
	n, err := s.admins(ctx, now)
	return n.live > 0, err
}

// AdminEverywhere reports whether an admin key without allowed_ips is valid at now.
func (s *Store) AdminEverywhere(ctx context.Context, now time.Time) (bool, error) {
	n, err := s.admins(ctx, now)
	return n.open > 0, err
}

func (s *Store) admins(ctx context.Context, now time.Time) (n admins, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		n, err = countAdmins(ctx, tx, "", now)
		return err
	})
	return n, err
}

// alter changes one key: it reads the key, calls change, and reads the key again, in one transaction.
func (s *Store) alter(ctx context.Context, preview string, change func(context.Context, *sql.Tx, StoredKey) error) (api.Key, error) {
	var after StoredKey
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		old, err := scanKey(tx.QueryRowContext(ctx, keyByPreview, preview))
		if err != nil {
			return keyError(err)
		}
		if err := change(ctx, tx, old); err != nil {
			return err
		}
		after, err = scanKey(tx.QueryRowContext(ctx, keyByPreview, preview))
		return err
	})
	return after.Key, err
}

func errRevoked(preview string) error {
	return api.Errorf(api.CodeConflict, "the key %s is revoked, which is permanent; create a new one", preview)
}

// soon is how close an expiry must be for checkCaller to refuse it as a mistake.
const soon = 24 * time.Hour

// checkCaller refuses a change after which the key that makes it could not create another one, unless it is forced.
func checkCaller(old, k api.Key, by api.Change) error {
	if by.Force || by.Actor != old.Preview {
		return nil
	}
	from, _ := netip.ParseAddr(by.From) // an unknown address is in no network
	what := ""
	switch {
	case k.Role != api.RoleAdmin:
		what = "it would no longer be an admin key"
	case !k.Allows(from):
		what = "your own address, " + by.From + ", is not in its allowed_ips"
	case k.ExpiresAt != nil && k.ExpiresAt.Before(by.At.Add(soon)) && (old.ExpiresAt == nil || k.ExpiresAt.Before(*old.ExpiresAt)):
		what = "it would expire within a day"
	default:
		return nil
	}
	return api.Errorf(api.CodeConflict, "this change would lock out %s, the key that you use: %s; send ?force=true if you mean it", old.Preview, what)
}

// keepAdmin refuses a change that removes the last admin key. Only keys without allowed_ips count, because addresses change. There are
// two conditions: at least one such key must be valid now, and at least one must have no expiry. If a key is the last one for either, a
// change must keep it so, except that a key may revoke itself while another one without allowed_ips is valid. A key with allowed_ips may
// end while another admin key remains; if it ends itself, that other one must have no allowed_ips.
func keepAdmin(ctx context.Context, tx *sql.Tx, old, k api.Key, by api.Change) error {
	if !by.KeepAdmin || !isLive(old, by.At) {
		return nil
	}
	others, err := countAdmins(ctx, tx, old.Preview, by.At)
	if err != nil {
		return err
	}
	self := by.Actor == old.Preview
	const another = "create another admin key without allowed_ips first"
	open := func(k api.Key) bool { return isLive(k, by.At) && len(k.AllowedIPs) == 0 }
	lasting := func(k api.Key) bool { return open(k) && k.ExpiresAt == nil }
	switch {
	case lasting(old) && !lasting(k) && others.lasting == 0 && !(self && k.RevokedAt != nil && others.open > 0):
		return api.Errorf(api.CodeConflict, "%s is the last admin key without an expiry and without allowed_ips; %s", old.Preview, another)
	case open(old) && !open(k) && others.open == 0:
		return api.Errorf(api.CodeConflict, "%s is the last admin key without allowed_ips; %s", old.Preview, another)
	case !isLive(k, by.At) && others.open == 0 && (others.live == 0 || self):
		return api.Errorf(api.CodeConflict, "after %s ends, there would be no admin key without allowed_ips; %s", old.Preview, another)
	}
	return nil
}

func isLive(k api.Key, now time.Time) bool { return k.Role == api.RoleAdmin && k.Live(now) }

// admins counts the valid admin keys: all, those without allowed_ips, and those of them without an expiry.
type admins struct{ live, open, lasting int64 }

// countAdmins counts all admin keys except one.
func countAdmins(ctx context.Context, tx *sql.Tx, but string, now time.Time) (n admins, err error) {
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*), COUNT(CASE WHEN open = 1 THEN 1 END), COUNT(CASE WHEN open = 1 AND expires_at IS NULL THEN 1 END)
		FROM (SELECT expires_at, CASE WHEN allowed_ips IS NULL OR allowed_ips = '[]' THEN 1 ELSE 0 END AS open FROM keys
			WHERE role = $1 AND revoked_at IS NULL AND preview <> $2 AND (expires_at IS NULL OR expires_at > $3)) AS working`,
		string(api.RoleAdmin), but, millis(now)).Scan(&n.live, &n.open, &n.lasting)
	return n, err
}

// keyError reports an unknown key. It does not repeat the input, which may be a whole secret.
func keyError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		return api.Errorf(api.CodeNotFound, "there is no key with this key_preview (oas_ and ten characters)")
	}
	return unavailable("read", err)
}

// scanKey reads keyColumns from a *sql.Row or *sql.Rows.
func scanKey(row interface{ Scan(...any) error }) (StoredKey, error) {
	var k StoredKey
	var previousUntil sql.NullInt64
	into := []any{&k.MAC, &k.PreviousMAC, &previousUntil}
	for _, f := range api.KeyFields {
		into = append(into, stored(f.At(&k.Key)))
	}
	if err := row.Scan(into...); err != nil {
		return StoredKey{}, err
	}
	if previousUntil.Valid {
		k.PreviousUntil = instant(previousUntil.Int64)
	}
	return k, nil
}

// stored returns what reads and writes the value that at points to. Texts, numbers and booleans need nothing.
func stored(at any) any {
	switch at.(type) {
	case *time.Time, **time.Time, *[]string, *[]api.Network, *api.Policy:
		return column{at}
	}
	return at
}

// column is a time in milliseconds, or a list or policy as JSON. A nil list is NULL and an empty one is not, because they differ for
// models.
type column struct{ at any }

func (c column) Value() (driver.Value, error) {
	switch at := c.at.(type) {
	case *time.Time:
		return millis(*at), nil
	case **time.Time:
		return nullMillis(*at), nil
	}
	if reflect.ValueOf(c.at).Elem().IsNil() {
		return nil, nil
	}
	text, err := json.Marshal(c.at)
	return string(text), err
}

func (c column) Scan(v any) error {
	switch v := v.(type) {
	case int64:
		t := instant(v)
		if at, ok := c.at.(**time.Time); ok {
			*at = &t
			return nil
		}
		*c.at.(*time.Time) = t
	case string:
		return json.Unmarshal([]byte(v), c.at)
	}
	return nil
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
