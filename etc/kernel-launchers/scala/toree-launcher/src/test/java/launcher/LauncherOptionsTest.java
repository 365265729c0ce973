package launcher;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.net.InetSocketAddress;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;

class LauncherOptionsTest {
    private static LauncherOptions parse(String... args) {
        return LauncherOptions.parse(args);
    }

    @Test
    void oldSpellingsMeanTheSame() {
        LauncherOptions options = parse(
                "--RemoteProcessProxy.kernel-id", "k", "--RemoteProcessProxy.public-key=p",
                "--RemoteProcessProxy.response-address", "10.0.0.1:8877");
        assertEquals("k", options.kernelId());
        assertEquals("p", options.publicKey());
        assertEquals("10.0.0.1:8877", options.responseAddress());
    }

    @Test
    void theNewSpellingWinsInEitherOrder() {
        assertEquals("new", parse("--kernel-id", "new", "--RemoteProcessProxy.kernel-id", "old").kernelId());
        assertEquals("new", parse("--RemoteProcessProxy.kernel-id", "old", "--kernel-id", "new").kernelId());
    }

    @Test
    void valuesAreOptional() {
        LauncherOptions options = parse("--response-address", "--kernel-id", "k", "--alternate-sigint");
        assertEquals("", options.responseAddress());
        assertEquals("k", options.kernelId());
        assertEquals("", options.alternateSigint());
        assertNull(options.profile());
    }

    @Test
    void standardInputIsAFlag() {
        LauncherOptions options = parse("--launch-secret-on-stdin", "--kernel-id", "k");
        assertTrue(options.secretOnInput());
        assertEquals("k", options.kernelId());
    }

    @Test
    void kernelIdAndPublicKeyAreRequired() {
        assertThrows(IllegalArgumentException.class, () -> parse("--public-key", "p").kernelId());
        assertThrows(IllegalArgumentException.class, () -> parse("--kernel-id", "k", "--public-key").publicKey());
    }

    @Test
    void toreeGetsItsOwnArgumentsUnchanged() {
        Path profile = Path.of("/p");
        assertEquals(
                List.of("--profile", "/p", "--spark-context-initialization-mode", "lazy", "--magic-url", "x", "y"),
                parse("--kernel-id", "k", "--magic-url", "x", "y").toreeArguments(profile));
        assertEquals(
                List.of("--profile", "/p", "--nosparkcontext", "--alternate-sigint", "USR2"),
                parse("--spark-context-initialization-mode", "none", "--alternate-sigint", "USR2")
                        .toreeArguments(profile));
    }

    @Test
    void anInvalidResponseAddressMeansThatNobodyWaits() {
        assertNull(ToreeLauncher.address(""));
        assertNull(ToreeLauncher.address("host"));
        assertNull(ToreeLauncher.address("10.0.0.1:99999"));
        assertEquals(new InetSocketAddress("10.0.0.1", 8877), ToreeLauncher.address("10.0.0.1:8877"));
        assertEquals(new InetSocketAddress("::1", 8877), ToreeLauncher.address("[::1]:8877"));
    }
}
