package streamtest

import (
	"testing"

	"github.com/vibetools/gvstream/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
