package launcher;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.util.Map;
import org.junit.jupiter.api.Test;

class LaunchSecretTest {
    private static final Map<String, String> ENVIRONMENT = Map.of(LaunchSecret.VARIABLE, "from-environment");

    private static InputStream input(String text) {
        return new ByteArrayInputStream(Payload.ascii(text));
    }

    @Test
    void standardInputIsReadOnlyWhenAsked() throws IOException {
        byte[] expected = Payload.ascii("from-input");
        assertArrayEquals(expected, LaunchSecret.read(true, input("from-input\n"), ENVIRONMENT));
        InputStream untouched = input("x");
        assertArrayEquals(Payload.ascii("from-environment"), LaunchSecret.read(false, untouched, ENVIRONMENT));
        assertArrayEquals(Payload.ascii("x"), untouched.readAllBytes());
    }

    @Test
    void noSecretIsNull() throws IOException {
        assertNull(LaunchSecret.read(true, input("\n"), ENVIRONMENT));
        assertNull(LaunchSecret.read(false, input(""), Map.of()));
    }
}
