package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// columns are what a row's hash is over, in this order.
const columns = `seq, id, at, kind, link_id, request_id, click_id, detail::text, visitor_hash`

const (
	columnSeq = iota
	columnID
	columnAt
	columnKind
	_
	_
	_
	_
	columnVisitorHash
)

// row is what the chain holds of a row of audit_events.
type row struct {
	seq  int64
	id   uuid.UUID
	hash [sha256.Size]byte
}

// errFormat is returned where pgx was told to have values sent as text.
var errFormat = errors.New("the audit is sealed and verified in Postgres' binary format; take default_query_exec_mode out of DATABASE_URL")

// collect reads the rows of a query of columns. It takes the bytes as they came: to decode and encode 200,000 rows a
// second again would cost more than their hashes. see may be nil.
func collect(rows pgx.Rows, see func(values [][]byte)) (list []row, err error) {
	defer rows.Close()
	var buf []byte
	for rows.Next() {
		values := rows.RawValues()
		if len(values[columnSeq]) != 8 || len(values[columnID]) != 16 || rows.FieldDescriptions()[columnAt].Format != pgx.BinaryFormatCode {
			return nil, errFormat
		}
		r := row{seq: int64(binary.BigEndian.Uint64(values[columnSeq])), id: uuid.UUID(values[columnID])}
		r.hash, buf = hashRow(values, buf[:0])
		list = append(list, r)
		if see != nil {
			see(values)
		}
	}
	return list, rows.Err()
}

// hashRow is SHA-256 over each value behind its length in 4 bytes, big endian, and -1 for NULL: a tuple of binary
// COPY (https://www.postgresql.org/docs/current/sql-copy.html, "Tuples") without its count of fields.
func hashRow(values [][]byte, buf []byte) ([sha256.Size]byte, []byte) {
	for _, v := range values {
		if v == nil {
			buf = append(buf, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(v))), v...)
	}
	return sha256.Sum256(buf), buf
}
