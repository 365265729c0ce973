package launcher;

import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** The one-time secret of this launch, which the gateway gave to whatever started the launcher. */
final class LaunchSecret {
    static final String VARIABLE = "EG_LAUNCH_SECRET";
    private static final int MAX_BYTES = 256;

    private LaunchSecret() {}

    /**
     * Returns the secret, or null if there is none.
     *
     * <p>Java cannot change the environment its children inherit, so a starter that does not want cells to see the
     * secret (bin/run.sh of our kernelspecs) hands it over as the only line of standard input.
     */
    static byte[] read(boolean onInput, InputStream input, Map<String, String> environment) throws IOException {
        String secret = onInput
                ? new String(input.readNBytes(MAX_BYTES), StandardCharsets.UTF_8).strip()
                : environment.getOrDefault(VARIABLE, "");
        return secret.isEmpty() ? null : Payload.ascii(secret);
    }
}
