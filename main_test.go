package gvstream

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/vibetools/gvstream/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m, nothingWrittenIntoEmptyLife) }

// nothingWrittenIntoEmptyLife checks that nothing was written into the state that all
// sessions without events share.
func nothingWrittenIntoEmptyLife() error {
	if !reflect.ValueOf(emptyLife).IsZero() {
		return fmt.Errorf("sessions without events have become %+v", emptyLife)
	}
	return nil
}
