package portal

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// A place is what a POST gives a person who has to wait: the proof that the button was pressed,
// and which click it began. It stands behind the token in the URL that the waiting page comes
// back to, and is
//
//	key id (1) | click id (16) | end, Unix seconds (4) | MAC (18)
//
// in base64url, 52 characters. The MAC covers these and the link's id, under a key of its own
// (HKDF, info placeKeyInfo), so that no token passes as a place and no place works with another
// link. That key is derived from the one that signed the link's token: a key opens nothing of another
// key's links. It says nothing about the click: whether it is still open stands in the database.
const (
	placeRawLen  = 1 + 16 + 4 + tokenMACLen
	placeLen     = placeRawLen / 3 * 4
	placeKeyInfo = "latchkey place v1"
)

// placeLife is how long a place can be come back to. Each waiting page gives a fresh one. A page that
// tries again keeps the end that it came with: a forgotten tab must not ask Stripe for ever.
const placeLife = time.Hour

// SignPlace returns the place of a click of a link, good until end, under the link's key. It is empty
// where that was taken out since the token was verified: the token is none any more either.
func (k *Keyring) SignPlace(keyID byte, link, click uuid.UUID, end time.Time) string {
	key := k.now.Load().byID[keyID]
	if key == nil {
		return ""
	}
	var raw [placeRawLen]byte
	raw[0] = keyID
	copy(raw[1:], click[:])
	binary.BigEndian.PutUint32(raw[17:], uint32(end.Unix()))
	mac := key.places.mac(raw[:placeRawLen-tokenMACLen], link[:])
	copy(raw[placeRawLen-tokenMACLen:], mac[:])
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

// VerifyPlace returns the click that a place of this link names, and the place's end, or ErrToken
// for one that was not given out for it, by its key, or whose time is over.
func (k *Keyring) VerifyPlace(place string, keyID byte, link uuid.UUID, now time.Time) (click uuid.UUID, end time.Time, err error) {
	var raw [placeRawLen]byte
	if len(place) != placeLen {
		return uuid.Nil, end, ErrToken
	}
	if n, err := base64.RawURLEncoding.Decode(raw[:], []byte(place)); err != nil || n != placeRawLen {
		return uuid.Nil, end, ErrToken
	}
	keys := k.now.Load()
	key := keys.byID[keyID]
	if raw[0] != keyID || key == nil || keys.retired[keyID] { // a retired key's links are dead: nobody waits
		return uuid.Nil, end, ErrToken
	}
	mac := key.places.mac(raw[:placeRawLen-tokenMACLen], link[:])
	end = time.Unix(int64(binary.BigEndian.Uint32(raw[17:])), 0)
	if !hmac.Equal(mac[:], raw[placeRawLen-tokenMACLen:]) || !now.Before(end) {
		return uuid.Nil, end, ErrToken
	}
	return uuid.UUID(raw[1:17]), end, nil
}
