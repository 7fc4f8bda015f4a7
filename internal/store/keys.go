package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"net/netip"
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

const keyColumns = `preview, name, role, mac, previous_mac, previous_until, rate_limit, max_concurrent, models, allow_cloud,
	expires_at, allowed_ips, policy, note, created_at, revoked_at, tokens_per_hour, tokens_per_day, gpu_seconds_per_day,
	max_tokens_per_request, strict, weight, class`

// CreateKey stores a new key. A zero CreatedAt becomes by.At, and a key with neither weight nor class gets the defaults. It returns
// CodeBadRequest for an invalid field or an expiry before by.At, and CodeConflict if the preview is taken.
func (s *Store) CreateKey(ctx context.Context, k api.Key, mac []byte, by api.Change) error {
	if k.Weight == 0 && k.Class == "" {
		k.Weight, k.Class = api.DefaultWeight, api.ClassInteractive
	}
	if err := k.Validate(); err != nil {
		return err
	}
	if err := api.CheckExpiry(k.ExpiresAt, by.At); err != nil {
		return err
	}
	if k.CreatedAt.IsZero() {
		k.CreatedAt = by.At
	}
	models, networks, policy, err := structured(k)
	if err != nil {
		return err
	}
	detail, err := fields(k)
	if err != nil {
		return err
	}
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO keys (`+keyColumns+`)
			VALUES ($1, $2, $3, $4, NULL, NULL, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21) ON CONFLICT (preview) DO NOTHING`,
			k.Preview, k.Name, string(k.Role), mac, k.RateLimit, k.MaxConcurrent, models, flag(k.AllowCloud),
			nullMillis(k.ExpiresAt), networks, policy, k.Note, millis(k.CreatedAt), nullMillis(k.RevokedAt),
			k.TokensPerHour, k.TokensPerDay, k.GPUPerDay, k.MaxOutput, flag(k.Strict), k.Weight, string(k.Class))
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

const keyByPreview = `SELECT ` + keyColumns + ` FROM keys WHERE preview = $1`

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
		if p.ExpiresAt.Set {
			endsItself := by.Force && by.Actor == preview && k.ExpiresAt != nil && !k.ExpiresAt.After(by.At)
			if err := api.CheckExpiry(p.ExpiresAt.Value, by.At); err != nil && !endsItself {
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
		models, networks, policy, err := structured(k)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE keys SET name = $2, role = $3, rate_limit = $4, max_concurrent = $5, models = $6,
			allow_cloud = $7, expires_at = $8, allowed_ips = $9, policy = $10, note = $11, tokens_per_hour = $12, tokens_per_day = $13,
			gpu_seconds_per_day = $14, max_tokens_per_request = $15, strict = $16, weight = $17, class = $18 WHERE preview = $1`,
			preview, k.Name, string(k.Role), k.RateLimit, k.MaxConcurrent, models, flag(k.AllowCloud), nullMillis(k.ExpiresAt), networks, policy, k.Note,
			k.TokensPerHour, k.TokensPerDay, k.GPUPerDay, k.MaxOutput, flag(k.Strict), k.Weight, string(k.Class))
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
	switch {
	case open(old) && old.ExpiresAt == nil && (!open(k) || k.ExpiresAt != nil) && others.lasting == 0 && !(self && k.RevokedAt != nil && others.open > 0):
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
	var previousUntil, expires, revoked sql.NullInt64
	var models, networks, policy sql.NullString
	var cloud, created, strict int64
	err := row.Scan(&k.Preview, &k.Name, &k.Role, &k.MAC, &k.PreviousMAC, &previousUntil, &k.RateLimit, &k.MaxConcurrent, &models,
		&cloud, &expires, &networks, &policy, &k.Note, &created, &revoked,
		&k.TokensPerHour, &k.TokensPerDay, &k.GPUPerDay, &k.MaxOutput, &strict, &k.Weight, &k.Class)
	if err != nil {
		return StoredKey{}, err
	}
	k.AllowCloud, k.Strict, k.CreatedAt = cloud != 0, strict != 0, instant(created)
	k.ExpiresAt, k.RevokedAt = nullInstant(expires), nullInstant(revoked)
	if previousUntil.Valid {
		k.PreviousUntil = instant(previousUntil.Int64)
	}
	for _, field := range []struct {
		text sql.NullString
		into any
	}{{models, &k.Models}, {networks, &k.AllowedIPs}, {policy, &k.Policy}} {
		if !field.text.Valid {
			continue
		}
		if err := json.Unmarshal([]byte(field.text.String), field.into); err != nil {
			return StoredKey{}, err
		}
	}
	return k, nil
}

// structured returns the fields that are JSON text. A nil list is NULL and an empty one is not, because they differ for models.
func structured(k api.Key) (models, networks, policy any, err error) {
	text := func(absent bool, v any) any {
		if absent || err != nil {
			return nil
		}
		var b []byte
		b, err = json.Marshal(v)
		return string(b)
	}
	models = text(k.Models == nil, k.Models)
	networks = text(k.AllowedIPs == nil, k.AllowedIPs)
	policy = text(k.Policy == nil, k.Policy)
	return models, networks, policy, err
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
