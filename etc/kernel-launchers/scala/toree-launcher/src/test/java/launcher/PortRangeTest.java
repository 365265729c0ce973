package launcher;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.net.ServerSocket;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class PortRangeTest {
    @ParameterizedTest
    @ValueSource(strings = {"", "1", "a..b", "40000..", "40000..40100", "42000..40000", "80..4000", "60000..70000", "1..2..3"})
    void refusesWhatIsNoUsableRange(String text) {
        assertThrows(IllegalArgumentException.class, () -> PortRange.parse(text, Map.of()));
    }

    @Test
    void theLeastSizeIsASetting() {
        assertDoesNotThrow(() -> PortRange.parse("40000..40100", Map.of("EG_MIN_PORT_RANGE_SIZE", "100")));
        assertThrows(
                IllegalArgumentException.class,
                () -> PortRange.parse(
                        "40000..40100", Map.of("EG_MIN_PORT_RANGE_SIZE", "100", "MIN_PORT_RANGE_SIZE", "200")));
    }

    @Test
    void bindsWithinTheRange() throws IOException {
        for (int i = 0; i < 50; i++) {
            try (ServerSocket socket = PortRange.parse("41000..42000", Map.of()).bind()) {
                assertTrue(socket.getLocalPort() >= 41000 && socket.getLocalPort() <= 42000);
            }
        }
    }

    @Test
    void zeroLeavesTheChoiceToTheSystem() throws IOException {
        try (ServerSocket socket = PortRange.parse("0..0", Map.of()).bind()) {
            assertTrue(socket.getLocalPort() > 0);
        }
    }
}
