package audit

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/uuid"

	"latchkey/internal/testkit"
)

// Invariant 3: whatever an owner of the database does to sealed rows is named by the first row that it concerns.
func TestInvariant3TamperingIsNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   string // $1 is the third of five rows
		what string // %2: row 2, of the first five; "": $1
		row  int
	}{
		"detail changed":      {do: `UPDATE audit_events SET detail = '{"verdict": "scanner"}' WHERE id = $1`, what: "changed", row: 2},
		"time changed":        {do: `UPDATE audit_events SET at = at + interval '1 microsecond' WHERE id = $1`, what: "changed", row: 2},
		"link taken away":     {do: `UPDATE audit_events SET link_id = NULL, kind = 'request.rejected' WHERE id = $1`, what: "changed", row: 2},
		"visitor's hash gone": {do: `UPDATE audit_events SET visitor_hash = NULL WHERE id = $1`, what: "changed", row: 2},
		"removed":             {do: `DELETE FROM audit_events WHERE id = $1`, what: "removed", row: 2},
		"the last removed":    {do: `DELETE FROM audit_events WHERE $1::uuid IS NOT NULL AND id = (SELECT ids[5] FROM audit_seals WHERE number = 1)`, what: "removed", row: 4},
		"two changed places":  {do: `UPDATE audit_events SET seq = CASE seq WHEN 3 THEN 4 ELSE 3 END WHERE seq IN (3, 4) AND $1::uuid IS NOT NULL`, what: "moved", row: 2},
		"moved behind":        {do: `UPDATE audit_events SET seq = 1000 WHERE id = $1`, what: "moved", row: 2},
		"added with a seq twice": {do: `INSERT INTO audit_events (id, at, kind, link_id, seq) SELECT 'ffffffff-ffff-7fff-bfff-ffffffffffff', at, kind, link_id, seq FROM audit_events WHERE id = $1`,
			what: "added", row: -1},
		"added before all": {do: `INSERT INTO audit_events (id, at, kind, link_id, seq) SELECT 'ffffffff-ffff-7fff-bfff-ffffffffffff', at, kind, link_id, -5 FROM audit_events WHERE id = $1`,
			what: "added", row: -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			rows := b.opened(5)
			b.seal(5)
			b.opened(1)
			b.seal(2)
			b.tamper(c.do, rows[2])
			_, err := b.verify(Head{}, Head{})
			want := uuid.MustParse("ffffffff-ffff-7fff-bfff-ffffffffffff")
			if c.row >= 0 {
				want = rows[c.row]
			}
			var broken *BrokenError
			if !errors.As(err, &broken) || broken.What != c.what || broken.Row != want || broken.Seal != 1 || broken.Sealed.IsZero() {
				t.Errorf("%v, want row %s %s", err, want, c.what)
			}
			if !strings.Contains(err.Error(), want.String()) || !strings.Contains(err.Error(), c.what) {
				t.Error(err)
			}
		})
	}
}

func TestTamperingWithSeals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   string
		what string
		seal int64
	}{
		"hash changed":       {`UPDATE audit_seals SET hash = sha256('x') WHERE number = 2`, "changed", 2},
		"time changed":       {`UPDATE audit_seals SET sealed_at = sealed_at - interval '1 day' WHERE number = 1`, "changed", 1},
		"shortened":          {`UPDATE audit_seals SET last_seq = last_seq - 1 WHERE number = 2`, "removed", 2}, // its last row is not in it any more
		"one removed":        {`DELETE FROM audit_seals WHERE number = 2`, "missing", 2},
		"the first removed":  {`DELETE FROM audit_seals WHERE number = 1`, "missing", 1},
		"numbered otherwise": {`UPDATE audit_seals SET number = 7 WHERE number = 3`, "missing", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			for range 3 {
				b.opened(2)
				if _, err := b.sealer.Seal(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			b.tamper(c.do)
			_, err := b.verify(Head{}, Head{})
			var broken *BrokenError
			if !errors.As(err, &broken) || broken.Seal != c.seal || (broken.What != c.what && name != "shortened") {
				t.Errorf("%v, want seal %d %s", err, c.seal, c.what)
			}
		})
	}
}

// Who can write everything can make the whole chain anew, or cut it. A head that was kept elsewhere shows it.
func TestKeptHead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rows := b.opened(3)
	first := b.seal(3)
	b.opened(1)
	second := b.seal(2)

	b.tamper(`DELETE FROM audit_seals WHERE number = 2`)
	b.tamper(`DELETE FROM audit_events WHERE seq > 3`)
	b.tamper(`DELETE FROM audit_visitors`)
	if v, err := b.verify(Head{}, first); err != nil || v.Rows != 3 {
		t.Errorf("cut: %+v, %v", v, err)
	}
	for _, err := range []error{errOf(b.verify(Head{}, second)), errOf(b.verify(second, Head{}))} {
		if !errors.Is(err, ErrNoSuchSeal) {
			t.Errorf("cut, with the head of what was cut: %v", err)
		}
	}

	for _, table := range []string{"audit_seals", "audit_events", "audit_visitors"} {
		b.tamper(`ALTER TABLE ` + table + ` RENAME TO gone`)
		for _, err := range []error{errOf(b.verify(Head{}, first)), errOf(b.verify(Head{}, Head{}))} {
			if !errors.Is(err, ErrTableGone) || Found(err) == nil {
				t.Errorf("without %s: %v", table, err)
			}
		}
		b.tamper(`ALTER TABLE gone RENAME TO ` + table)
	}
	b.tamper(`ALTER TABLE audit_seals RENAME TO gone`)
	b.tamper(`ALTER TABLE audit_events RENAME TO gone_too`)
	if _, err := b.verify(Head{}, Head{}); !errors.Is(err, ErrTableGone) {
		t.Errorf("without both: %v", err)
	}
	b.tamper(`ALTER TABLE gone_too RENAME TO audit_events`)
	b.tamper(`ALTER TABLE gone RENAME TO audit_seals`)
	// Another database is none that was altered.
	elsewhere := open(t, testkit.Database(t, nil), ``)
	if _, err := Verify(t.Context(), elsewhere, Head{}, first, nil); err == nil || Found(err) != nil {
		t.Errorf("where there is no audit: %v", err)
	}

	b.tamper(`DELETE FROM audit_events WHERE id = $1`, rows[1])
	b.tamper(`DELETE FROM audit_seals`)
	forged := b.seal(2)
	if v, err := b.verify(Head{}, forged); err != nil || v.Rows != 2 {
		t.Errorf("made anew: %+v, %v", v, err)
	}
	if _, err := b.verify(Head{}, first); !errors.Is(err, ErrOtherSeal) {
		t.Errorf("made anew, with the head of before: %v", err)
	}
}

func errOf(_ Verified, err error) error { return err }

// Invariant 4, and that what is left of visitors is what was hashed.
func TestVisitors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do     string
		broken bool
	}{
		"erased":             {do: `DELETE FROM audit_visitors WHERE event_id = $1`},
		"written by 0.1.0":   {do: `INSERT INTO audit_visitors (event_id, at, ip, user_agent) SELECT id, at, '1.2.3.4', 'x' FROM audit_events WHERE kind = 'audit.sealed' AND $1::uuid IS NOT NULL`},
		"agent changed":      {do: `UPDATE audit_visitors SET user_agent = 'x' WHERE event_id = $1`, broken: true},
		"address changed":    {do: `UPDATE audit_visitors SET ip = '2001:db8::2' WHERE event_id = $1`, broken: true},
		"salt taken away":    {do: `UPDATE audit_visitors SET salt = NULL WHERE event_id = $1`, broken: true},
		"of no row":          {do: `UPDATE audit_visitors SET event_id = gen_random_uuid() WHERE event_id = $1`, broken: true},
		"salted, of no hash": {do: `UPDATE audit_visitors SET event_id = (SELECT id FROM audit_events WHERE kind = 'audit.sealed') WHERE event_id = $1`, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			rows := b.opened(2)
			b.seal(2)
			b.tamper(c.do, rows[0])
			v, err := b.verify(Head{}, Head{})
			var broken *VisitorError
			if errors.As(err, &broken) != c.broken || !c.broken && err != nil {
				t.Errorf("%+v, %v", v, err)
			}
			if unproved := int64(b.count(`SELECT count(*) FROM audit_visitors WHERE salt IS NULL`)); !c.broken && v.Unproved != unproved {
				t.Errorf("%+v, want %d unproved", v, unproved)
			}
		})
	}
}
